package main

import (
	"archive/tar"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"

	"github.com/criserver/criserver/admin/api"
)

// chunkSize is how much of an archive goes into one message.
const chunkSize = 256 << 10

// authFlags adds the flags of a credential, and returns what reads it.
func authFlags(flags *flag.FlagSet) func(io.Reader) (*api.Auth, error) {
	user := flags.String("username", "", "user at the registry; the password is read from standard input, one line")
	token := flags.Bool("token-stdin", false, "read a registry's bearer token from standard input, one line")
	return func(in io.Reader) (*api.Auth, error) { return authFrom(in, *user, *token) }
}

// selectionFlags adds the flags that choose from an index.
func selectionFlags(flags *flag.FlagSet) *api.Selection {
	selection := &api.Selection{}
	flags.StringVar(&selection.Platform, "platform", "", "os/arch[/variant] of an image with an index, alone")
	flags.BoolVar(&selection.All, "all-platforms", false, "the whole index; what is not here is fetched from where the image came from")
	return selection
}

// tellMissing says what of an index was left out.
func tellMissing(name string, missing []string) {
	if len(missing) > 0 {
		fmt.Fprintf(os.Stderr, "criserver: of %s only the platform that is here was taken; not here are %s (--all-platforms fetches them)\n",
			name, strings.Join(missing, ", "))
	}
}

func imagePush(flags *flag.FlagSet) func(context.Context, *imageCall) error {
	selection, readAuth := selectionFlags(flags), authFlags(flags)
	return func(ctx context.Context, c *imageCall) error {
		auth, err := readAuth(c.in)
		if err != nil {
			return err
		}
		request := &api.PushRequest{Ref: c.args[0], Auth: auth, Selection: selection}
		if len(c.args) > 1 {
			request.To = c.args[1]
		}
		stream, err := c.client.Push(ctx, request)
		if err != nil {
			return err
		}
		return receive(stream, func(response *api.PushResponse) error {
			part, result := response.GetPart(), response.GetResult()
			switch {
			case c.json:
				return printJSON(c.out, response)
			case part != nil && c.bar != nil:
				fmt.Fprintf(c.bar, "%-8s  %.19s  %s\n", part.GetHow(), part.GetDigest(), byteSize(part.GetSize()))
			case result != nil:
				tellMissing(result.GetName(), result.GetMissing())
				name, _, _ := strings.Cut(result.GetName(), "@")
				fmt.Fprintf(c.out, "%s@%s\n", name, result.GetDigest())
			}
			return nil
		})
	}
}

// receive hands each message of a stream on.
func receive[M any](stream grpc.ServerStreamingClient[M], take func(*M) error) error {
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = take(message)
		}
		if err != nil {
			return err
		}
	}
}

func imageTag(*flag.FlagSet) func(context.Context, *imageCall) error {
	return func(ctx context.Context, c *imageCall) error {
		_, err := c.client.Tag(ctx, &api.TagRequest{Ref: c.args[0], Name: c.args[1]})
		return err
	}
}

func imageUntag(*flag.FlagSet) func(context.Context, *imageCall) error {
	return func(ctx context.Context, c *imageCall) error {
		_, err := c.client.Untag(ctx, &api.UntagRequest{Name: c.args[0]})
		return err
	}
}

func imageImport(flags *flag.FlagSet) func(context.Context, *imageCall) error {
	options := &api.ImportOptions{}
	flags.StringVar(&options.Name, "name", "", "name for the image instead of the archive's; without a tag the archive's tags are kept")
	flags.StringVar(&options.Platform, "platform", "", "os/arch[/variant] to unpack instead of this machine's")
	return func(ctx context.Context, c *imageCall) error {
		archive, err := openArchive(c.args[0], c.in)
		if err != nil {
			return err
		}
		defer archive.Close()
		stream, err := c.client.Import(ctx)
		if err != nil {
			return err
		}
		if err := sendArchive(stream, archive, options); err != nil {
			return err
		}
		response, err := stream.CloseAndRecv()
		if err != nil {
			return err
		}
		if c.json {
			return printAll(c.out, response.GetImages())
		}
		for _, image := range response.GetImages() {
			fmt.Fprintln(c.out, image.GetId(), strings.Join(image.GetNames(), " "))
			if missing := image.GetMissing(); len(missing) > 0 {
				fmt.Fprintf(os.Stderr, "criserver: not in the archive, though the index names them: %s\n", strings.Join(missing, ", "))
			}
		}
		return nil
	}
}

// sendArchive sends an archive. When the daemon has refused it, what comes of the call says why.
func sendArchive(stream grpc.ClientStreamingClient[api.ImportRequest, api.ImportResponse], archive io.Reader, options *api.ImportOptions) error {
	if err := stream.Send(&api.ImportRequest{Options: options}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for {
		buffer := make([]byte, chunkSize)
		n, err := io.ReadFull(archive, buffer)
		if n > 0 {
			if sent := stream.Send(&api.ImportRequest{Data: buffer[:n]}); errors.Is(sent, io.EOF) {
				return nil
			} else if sent != nil {
				return sent
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
	}
}

// openArchive opens a file, standard input ("-"), or the directory of an OCI layout as the tar that it would be.
func openArchive(path string, in io.Reader) (io.ReadCloser, error) {
	if path == "-" {
		return io.NopCloser(in), nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return os.Open(path)
	}
	if _, err := os.Stat(filepath.Join(path, "oci-layout")); err != nil {
		return nil, fmt.Errorf("%s is not the directory of an OCI layout: %w", path, err)
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(packLayout(path, w)) }()
	return r, nil
}

// packLayout writes an OCI layout as a tar. What does not belong to one is left out.
func packLayout(path string, w io.Writer) error {
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer root.Close()
	out := tar.NewWriter(w)
	add := func(name string) error {
		file, err := root.Open(name)
		if err != nil {
			return err
		}
		defer file.Close()
		info, err := file.Stat()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is not a regular file", name)
		}
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: info.Size(), Mode: 0o644}); err != nil {
			return err
		}
		_, err = io.Copy(out, file)
		return err
	}
	for _, name := range []string{"oci-layout", "index.json"} {
		if err := add(name); err != nil {
			return err
		}
	}
	err = fs.WalkDir(root.FS(), "blobs", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		return add(name)
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return out.Close()
}

func imageExport(flags *flag.FlagSet) func(context.Context, *imageCall) error {
	selection, readAuth := selectionFlags(flags), authFlags(flags)
	docker := flags.Bool("docker", false, "add what `docker load` reads")
	output := flags.String("output", "-", "file to write; - is standard output")
	return func(ctx context.Context, c *imageCall) error {
		auth, err := readAuth(c.in)
		if err != nil {
			return err
		}
		stream, err := c.client.Export(ctx, &api.ExportRequest{Refs: c.args, Docker: *docker, Auth: auth, Selection: selection})
		if err != nil {
			return err
		}
		if *output == "-" {
			if file, ok := c.out.(*os.File); ok && isTerminal(file) {
				return errors.New("an archive is not for a terminal: give --output FILE")
			}
			return receiveArchive(stream, c.out)
		}
		return writeWhole(*output, func(w io.Writer) error { return receiveArchive(stream, w) })
	}
}

func receiveArchive(stream grpc.ServerStreamingClient[api.ExportResponse], w io.Writer) error {
	whole := false
	err := receive(stream, func(response *api.ExportResponse) error {
		for _, image := range response.GetResult().GetImages() {
			tellMissing(image.GetName(), image.GetMissing())
		}
		whole = whole || response.GetResult() != nil
		_, err := w.Write(response.GetData())
		return err
	})
	if err == nil && !whole {
		err = errors.New("the daemon ended before the archive was whole")
	}
	return err
}

// writeWhole writes a file beside its name first, so that there is never half of it.
func writeWhole(path string, write func(io.Writer) error) (err error) {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = file.Close()
			_ = os.Remove(file.Name())
		}
	}()
	if err := write(file); err != nil {
		return err
	}
	if err := errors.Join(file.Chmod(0o644), file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}

func imageCheck(flags *flag.FlagSet) func(context.Context, *imageCall) error {
	readAuth := authFlags(flags)
	repair := flags.Bool("repair", false, "fetch broken blobs again, and unpack broken layers again")
	return func(ctx context.Context, c *imageCall) error {
		auth, err := readAuth(c.in)
		if err != nil {
			return err
		}
		request := &api.CheckRequest{Repair: *repair, Auth: auth}
		if len(c.args) > 0 {
			request.Ref = c.args[0]
		}
		stream, err := c.client.Check(ctx, request)
		if err != nil {
			return err
		}
		left := 0
		err = receive(stream, func(response *api.CheckResponse) error {
			finding, result := response.GetFinding(), response.GetResult()
			if finding != nil && !finding.GetRepaired() {
				left++
			}
			switch {
			case c.json:
				return printJSON(c.out, response)
			case finding != nil:
				state := map[bool]string{true: "repaired", false: "broken"}[finding.GetRepaired()]
				fmt.Fprintf(c.out, "%s: %s: %s (%s)\n", state, finding.GetWhat(), finding.GetProblem(), strings.Join(finding.GetImages(), ", "))
			case result != nil:
				fmt.Fprintln(c.out, checkSummary(result))
			}
			return nil
		})
		if err == nil && left > 0 {
			err = fmt.Errorf("%d broken; --repair mends what it can", left)
		}
		return err
	}
}

func checkSummary(r *api.CheckResult) string {
	text := fmt.Sprintf("%d images: %d blobs (%s) and %d layers; %d broken, %d repaired",
		r.GetImages(), r.GetBlobs(), byteSize(r.GetBytes()), r.GetLayers(), r.GetBroken(), r.GetRepaired())
	if r.GetAbsent() > 0 {
		text += fmt.Sprintf("; %d blobs are not kept", r.GetAbsent())
	}
	if r.GetUnverified() > 0 {
		text += fmt.Sprintf("; of %d layers only the number of files could be compared", r.GetUnverified())
	}
	return text
}
