package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/criserver/criserver/admin/api"
	"github.com/criserver/criserver/cri"
)

const imageUsage = `usage: criserver image pull [FLAGS] REF       fetch an image; prints its ID
       criserver image list [FLAGS]           images that are here
       criserver image progress [FLAGS]       pulls that are under way, whoever asked for them
       criserver image push [FLAGS] REF [TO]  send an image to a registry, as TO or by its own name
       criserver image tag REF NAME           give an image another name
       criserver image untag NAME             take a name away; with its last one an image goes
       criserver image import [FLAGS] FILE    read an OCI layout (a directory or a tar) or what docker saved; - is standard input
       criserver image export [FLAGS] REF...  write an OCI layout, with --docker one that docker reads, too
       criserver image check [FLAGS] [REF]    compare images with their digests; --repair mends them

flags:
`

// imageCommand is what an operator asks of the images of a running daemon.
type imageCommand struct {
	// words is how many arguments it takes at least and at most, besides flags; usage names them.
	least, most int
	usage       string
	// flags adds its own and returns what runs it.
	flags func(*flag.FlagSet) func(context.Context, *imageCall) error
}

// imageCall is one call of such a command.
type imageCall struct {
	client api.ImagesClient
	args   []string
	json   bool
	out    io.Writer
	// bar is where to show how far it is, or nil.
	bar io.Writer
	in  io.Reader
}

// imageCommands by name.
var imageCommands = map[string]imageCommand{
	"pull":     {1, 1, "REF", imagePull},
	"list":     {0, 0, "", imageList},
	"progress": {0, 0, "", imageProgress},
	"push":     {1, 2, "REF [TO]", imagePush},
	"tag":      {2, 2, "REF NAME", imageTag},
	"untag":    {1, 1, "NAME", imageUntag},
	"import":   {1, 1, "FILE", imageImport},
	"export":   {1, 1000, "REF...", imageExport},
	"check":    {0, 1, "[REF]", imageCheck},
}

// image runs `criserver image ...`.
func image(ctx context.Context, args []string, out io.Writer) error {
	name := ""
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	command, ok := imageCommands[name]
	if !ok {
		return fmt.Errorf("unknown command %q\n%s", "image "+name, strings.TrimSuffix(imageUsage, "\n\nflags:\n"))
	}
	flags := flag.NewFlagSet("criserver image "+name, flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), imageUsage)
		flags.PrintDefaults()
	}
	call := &imageCall{out: out, in: os.Stdin}
	flags.BoolVar(&call.json, "json", false, "print JSON, one object a line")
	quiet := flags.Bool("quiet", false, "show no progress")
	run := command.flags(flags)
	load := configFlags(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if call.args = flags.Args(); len(call.args) < command.least || len(call.args) > command.most {
		return fmt.Errorf("usage: criserver image %s [FLAGS] %s (flags come first)", name, command.usage)
	}
	cfg, err := load()
	if err != nil {
		return err
	}
	if !*quiet && !call.json && isTerminal(os.Stderr) {
		call.bar = os.Stderr
	}
	connection, err := dial(cfg.SocketPath())
	if err != nil {
		return err
	}
	defer connection.Close()
	call.client = api.NewImagesClient(connection)
	if err := run(ctx, call); err != nil {
		return fmt.Errorf("by %s: %w", cfg.SocketPath(), plainError(err))
	}
	return nil
}

// dial prepares a connection to the daemon's socket.
func dial(path string) (*grpc.ClientConn, error) {
	connection, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(cri.MaxMessage)))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return connection, nil
}

// plainError is what the daemon says, with the code in words.
func plainError(err error) error {
	if s, ok := status.FromError(err); ok && err != nil {
		return fmt.Errorf("%s (%s)", s.Message(), s.Code())
	}
	return err
}

func imagePull(flags *flag.FlagSet) func(context.Context, *imageCall) error {
	platform := flags.String("platform", "", "os/arch[/variant] instead of this machine's")
	readAuth := authFlags(flags)
	return func(ctx context.Context, c *imageCall) error {
		auth, err := readAuth(c.in)
		if err != nil {
			return err
		}
		stream, err := c.client.Pull(ctx, &api.PullRequest{Ref: c.args[0], Auth: auth, Platform: *platform})
		if err != nil {
			return err
		}
		bar := &pullBar{w: c.bar}
		defer bar.end()
		for {
			response, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			bar.show(response.GetProgress())
			switch {
			case c.json:
				if err := printJSON(c.out, response); err != nil {
					return err
				}
			case response.GetId() != "":
				bar.end()
				fmt.Fprintln(c.out, response.GetId())
			}
		}
	}
}

// authFrom makes a credential of a user and the secret in a line of in. Secrets are never arguments: everybody sees those.
func authFrom(in io.Reader, user string, token bool) (*api.Auth, error) {
	if user == "" && !token {
		return nil, nil
	}
	if user != "" && token {
		return nil, errors.New("--username and --token-stdin: one of them")
	}
	line, err := bufio.NewReader(in).ReadString('\n')
	if secret := strings.TrimRight(line, "\r\n"); secret != "" {
		if token {
			return &api.Auth{RegistryToken: secret}, nil
		}
		return &api.Auth{Username: user, Password: secret}, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = errors.New("it is empty")
	}
	return nil, fmt.Errorf("read the secret from standard input: %w", err)
}

func imageList(*flag.FlagSet) func(context.Context, *imageCall) error {
	return func(ctx context.Context, c *imageCall) error {
		response, err := c.client.List(ctx, &api.ListRequest{})
		if err != nil {
			return err
		}
		if c.json {
			return printAll(c.out, response.GetImages())
		}
		table := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "NAME\tID\tSIZE\tPLATFORM\tPINNED")
		for _, image := range response.GetImages() {
			names := append(image.GetRepoTags(), image.GetRepoDigests()...)
			if len(image.GetRepoTags()) > 0 {
				names = image.GetRepoTags()
			}
			pinned := map[bool]string{true: "yes", false: ""}[image.GetPinned()]
			for _, name := range names {
				fmt.Fprintf(table, "%s\t%.19s\t%s\t%s\t%s\n", name, image.GetId(), byteSize(image.GetSize()), image.GetPlatform(), pinned)
			}
		}
		return table.Flush()
	}
}

func imageProgress(*flag.FlagSet) func(context.Context, *imageCall) error {
	return func(ctx context.Context, c *imageCall) error {
		response, err := c.client.Progress(ctx, &api.ProgressRequest{})
		if err != nil {
			return err
		}
		if c.json {
			return printAll(c.out, response.GetPulls())
		}
		for _, pull := range response.GetPulls() {
			fmt.Fprintln(c.out, pull.GetRef(), barText(pull))
		}
		return nil
	}
}

func printAll[M proto.Message](w io.Writer, all []M) error {
	for _, one := range all {
		if err := printJSON(w, one); err != nil {
			return err
		}
	}
	return nil
}

// printJSON prints a message on one line, always the same way: protojson varies its spaces.
func printJSON(w io.Writer, m proto.Message) error {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return err
	}
	var value any
	if err := json.Unmarshal(text, &value); err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(value)
}
