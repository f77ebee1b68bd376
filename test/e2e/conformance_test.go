package e2e

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var conformancePage = flag.String("conformance", "", "after a run of all tests, write to this `file` which calls and fields of CRI they used, and fail when one is left out")

// seen is what tests did with one call, field or value.
type seen struct {
	honoured, refused map[string]bool // tests in which a call with it succeeded, or was answered by an error
	codes             map[codes.Code]bool
}

// coverage collects what all tests did. Its keys are "Method" and "Message.field" and, for enums, "Message.field=VALUE".
type coverage struct {
	mu  sync.Mutex
	all map[string]*seen
}

var covered = coverage{all: map[string]*seen{}}

var testName = regexp.MustCompile(`/test/e2e\.(Test\w+)`)

// callingTest is the test in whose goroutine a call was made, or one that it started.
func callingTest() string {
	var pcs [64]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		frame, more := frames.Next()
		if m := testName.FindStringSubmatch(frame.Function); m != nil && m[1] != "TestMain" {
			return m[1]
		}
		if !more {
			return ""
		}
	}
}

// observe is the rig's: it is called after each call.
func (c *coverage) observe(method string, request any, err error) {
	test := callingTest()
	if test == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(method[strings.LastIndexByte(method, '/')+1:], test, err)
	if m, ok := request.(proto.Message); ok {
		c.walk(m.ProtoReflect(), test, err)
	}
}

func (c *coverage) add(key, test string, err error) {
	s := c.all[key]
	if s == nil {
		s = &seen{honoured: map[string]bool{}, refused: map[string]bool{}, codes: map[codes.Code]bool{}}
		c.all[key] = s
	}
	if err == nil {
		s.honoured[test] = true
		return
	}
	s.refused[test] = true
	s.codes[status.Code(err)] = true
}

// walk adds every field that is set.
func (c *coverage) walk(m protoreflect.Message, test string, err error) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		key := string(m.Descriptor().Name()) + "." + string(f.Name())
		c.add(key, test, err)
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { c.walk(v.Message(), test, err); return true })
			}
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				c.walk(v.List().Get(i).Message(), test, err)
			}
		case f.Message() != nil:
			c.walk(v.Message(), test, err)
		case f.Enum() != nil && !f.IsList():
			if value := f.Enum().Values().ByNumber(v.Enum()); value != nil {
				c.add(key+"="+string(value.Name()), test, err)
			}
		}
		return true
	})
}

// services are those of CRI.
func services() []protoreflect.ServiceDescriptor {
	file := runtimev1.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto
	var all []protoreflect.ServiceDescriptor
	for i := range file.Services().Len() {
		all = append(all, file.Services().Get(i))
	}
	return all
}

// fieldsOf lists every field that a request of the method can have, as keys of coverage.
func fieldsOf(m protoreflect.MessageDescriptor, done map[protoreflect.FullName]bool) []string {
	if done[m.FullName()] || m.IsMapEntry() {
		return nil
	}
	done[m.FullName()] = true
	var keys []string
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		keys = append(keys, string(m.Name())+"."+string(f.Name()))
		if next := f.Message(); next != nil {
			if f.IsMap() {
				next = f.MapValue().Message()
			}
			if next != nil {
				keys = append(keys, fieldsOf(next, done)...)
			}
		}
	}
	return keys
}

// notUsed are the fields that no test here sets, with the reason.
var notUsed = []struct{ prefix, why string }{
	{"Windows", "of Windows nodes; this engine is of Linux"},
	{"PodSandboxConfig.windows", "of Windows nodes; refused by name"},
	{"ContainerConfig.windows", "of Windows nodes; refused by name"},
	{"SELinuxOption.", "tested in the virtual machine, whose kernel enforces a policy (TestSELinux and its kin); none is loaded here"},
	{"LinuxSandboxSecurityContext.selinux_options", "tested in the virtual machine, whose kernel enforces a policy (TestSELinux and its kin); none is loaded here"},
	{"LinuxContainerSecurityContext.selinux_options", "tested in the virtual machine, whose kernel enforces a policy (TestSELinux and its kin); none is loaded here"},
	{"Mount.selinux_relabel", "tested in the virtual machine, whose kernel enforces a policy (TestSELinux and its kin); none is loaded here"},
}

func whyNotUsed(key string) string {
	for _, n := range notUsed {
		if strings.HasPrefix(key, n.prefix) {
			return n.why
		}
	}
	return ""
}

// write makes the page. What is neither used nor accounted for is an error, after the page is written.
func (c *coverage) write(path string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var page bytes.Buffer
	page.WriteString("# CRI conformance\n\nWritten by `make e2e` from what its tests did: each call of CRI v1 and each field of its requests, what the " +
		"daemon made of it, and tests that show it. \"honoured\": a call with it succeeded, and the test asserts the effect. \"refused\": every call with it got the error that is named.\n")
	var missing []string
	for _, service := range services() {
		fmt.Fprintf(&page, "\n## %s\n\n| call | | tests |\n|---|---|---|\n", service.Name())
		for i := range service.Methods().Len() {
			missing = append(missing, c.row(&page, string(service.Methods().Get(i).Name()))...)
		}
	}
	done := map[protoreflect.FullName]bool{}
	page.WriteString("\n## Fields of requests\n")
	for _, service := range services() {
		for i := range service.Methods().Len() {
			last := ""
			for _, key := range fieldsOf(service.Methods().Get(i).Input(), done) {
				message, _, _ := strings.Cut(key, ".")
				if message != last {
					fmt.Fprintf(&page, "\n| %s | | tests |\n|---|---|---|\n", message)
					last = message
				}
				missing = append(missing, c.row(&page, key)...)
			}
		}
	}
	if err := os.WriteFile(path, page.Bytes(), 0o644); err != nil {
		return err
	}
	if len(missing) > 0 {
		return errors.New("no test uses, and no reason is given for, " + strings.Join(missing, ", "))
	}
	return nil
}

// row writes a line for a key, and lines for the values of an enum; it answers with the key when nothing is known of it.
func (c *coverage) row(page *bytes.Buffer, key string) (missing []string) {
	name := key[strings.LastIndexByte(key, '.')+1:]
	s := c.all[key]
	if s == nil {
		why := whyNotUsed(key)
		if why == "" {
			missing = append(missing, key)
		}
		fmt.Fprintf(page, "| %s | not used | %s |\n", name, why)
		return missing
	}
	s.line(page, name)
	for _, value := range slices.Sorted(maps.Keys(c.all)) {
		if rest, ok := strings.CutPrefix(value, key+"="); ok {
			c.all[value].line(page, name+" = "+rest)
		}
	}
	return nil
}

func (s *seen) line(page *bytes.Buffer, name string) {
	if len(s.honoured) > 0 {
		fmt.Fprintf(page, "| %s | honoured | %s |\n", name, some(s.honoured))
		return
	}
	var names []string
	for code := range s.codes {
		names = append(names, code.String())
	}
	slices.Sort(names)
	fmt.Fprintf(page, "| %s | refused: %s | %s |\n", name, strings.Join(names, ", "), some(s.refused))
}

// some are the first tests of a set.
func some(tests map[string]bool) string {
	names := slices.Sorted(maps.Keys(tests))
	if len(names) > 3 {
		names = append(names[:3], "...")
	}
	return strings.Join(names, ", ")
}
