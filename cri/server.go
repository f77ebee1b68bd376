package cri

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/cri/streaming"
	"github.com/criserver/criserver/engine"
	"github.com/criserver/criserver/image"
)

// MaxMessage is the largest message in bytes that is taken or sent: what kubelet and crictl take.
const MaxMessage = 16 << 20

// Config is what a Server is made of.
type Config struct {
	Engine *engine.Engine
	Images *image.Store
	// Version of this program, semantic.
	Version string
	// Info is shown by a verbose Status, each value as JSON.
	Info map[string]any
	// Streams serves the URLs of Exec, Attach and PortForward; nil: there are none. StreamIdle is how long a session may be
	// silent; 0: for good. The server is the caller's to close.
	Streams    *streaming.Server
	StreamIdle time.Duration
	// Log gets each call at level debug; nil is slog.Default.
	Log *slog.Logger
}

// Server answers the RuntimeService and the ImageService. Its methods may be called concurrently.
type Server struct {
	runtimeService
	imageService
	log *slog.Logger
	end context.CancelFunc
}

// runtimeService and imageService are apart because both embed a server that answers Unimplemented.
type runtimeService struct {
	runtime.UnimplementedRuntimeServiceServer
	engine  *engine.Engine
	root    string // the directory of writable layers
	version string
	info    map[string]any
	log     *slog.Logger
	streams *streaming.Server
	idle    time.Duration
	ending  context.Context // ends the streams that have no end of their own
}

type imageService struct {
	runtime.UnimplementedImageServiceServer
	images *image.Store
	engine *engine.Engine
}

// New makes a server; it starts nothing.
func New(c Config) *Server {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Streams != nil {
		quietKlog(c.Log)
	}
	ending, end := context.WithCancel(context.Background())
	return &Server{
		end: end,
		runtimeService: runtimeService{
			engine: c.Engine, root: c.Images.Root(), version: c.Version, info: c.Info,
			log: c.Log, streams: c.Streams, idle: c.StreamIdle, ending: ending,
		},
		imageService: imageService{images: c.Images, engine: c.Engine},
		log:          c.Log,
	}
}

// streamWorkers are goroutines that answer calls one after the other, and so keep the stacks that they have grown.
const streamWorkers = 4

// Options are those that a gRPC server of s needs: message sizes, and the one place where errors get their codes.
func (s *Server) Options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.UnaryInterceptor(s.intercept),
		grpc.StreamInterceptor(s.interceptStream),
	}
}

// Register adds both services to a server that was made with Options.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	runtime.RegisterRuntimeServiceServer(r, &s.runtimeService)
	runtime.RegisterImageServiceServer(r, &s.imageService)
}

func (s *Server) intercept(ctx context.Context, request any, call *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	start := time.Now()
	answer, err := handler(ctx, request)
	err = statusOf(err)
	s.logCall(ctx, call.FullMethod, time.Since(start), err)
	return answer, err
}

func (s *Server) interceptStream(service any, stream grpc.ServerStream, call *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	start := time.Now()
	err := statusOf(handler(service, stream))
	s.logCall(stream.Context(), call.FullMethod, time.Since(start), err)
	return err
}

// EndStreams ends the streams of events, which would go on for as long as their clients live. It is called before the gRPC
// server is told to stop, and may be repeated.
func (s *Server) EndStreams() { s.end() }

// logCall never logs a request: it may hold credentials.
func (s *Server) logCall(ctx context.Context, method string, took time.Duration, err error) {
	level := slog.LevelDebug
	switch status.Code(err) {
	case codes.Internal, codes.Unknown, codes.DataLoss:
		level = slog.LevelError
	case codes.Unavailable, codes.FailedPrecondition, codes.InvalidArgument:
		level = slog.LevelWarn
	}
	if !s.log.Enabled(ctx, level) {
		return
	}
	attributes := []any{"method", method, "took", took}
	if err != nil {
		attributes = append(attributes, "code", status.Code(err).String(), "error", status.Convert(err).Message())
	}
	s.log.Log(ctx, level, "cri call", attributes...)
}
