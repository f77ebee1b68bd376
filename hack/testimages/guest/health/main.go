// Command health answers grpc.health.v1.Health/Check with SERVING on port 5051, with nothing but the standard library: a
// gRPC call is a POST over HTTP/2 whose body is a message behind five bytes of flag and length, and whose status is a trailer.
package main

import (
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	http.HandleFunc("/grpc.health.v1.Health/Check", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		_, _ = w.Write([]byte{0, 0, 0, 0, 2, 0x08, 0x01}) // field 1, status: 1, SERVING
		w.Header().Set("Grpc-Status", "0")
	})
	server := &http.Server{Addr: ":5051", Protocols: protocols}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		_ = server.Close()
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		panic(err)
	}
}
