package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/criserver/criserver/cni/builtin"
)

// interfaceName is what the pod's interface is called in its namespace.
const interfaceName = "eth0"

// lists runs the plugins of configuration lists. Which list is used follows ConfDir; how an attachment is undone follows
// its record. Safe for concurrent use.
type lists struct {
	cfg     Config
	log     *slog.Logger
	runtime *libcni.CNIConfig
	watch   *watcher // nil in ModeBuiltin
	gate    gate     // GC must not meet an ADD that is not in its list of valid attachments

	mu     sync.Mutex
	list   *libcni.NetworkConfigList
	err    error // why there is no list
	cidrs  []netip.Prefix
	status statusCache
}

// statusCache spares a poller the runs of plugins.
type statusCache struct {
	list *libcni.NetworkConfigList
	at   time.Time
	err  error
}

const statusFor = 3 * time.Second

func newLists(cfg Config) (*lists, error) {
	l := &lists{cfg: cfg, log: cfg.Logger, cidrs: cfg.PodCIDRs, gate: newGate(),
		runtime: libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cfg.CacheDir, nil)}
	if cfg.Mode != ModeCNI {
		return l, nil
	}
	if err := os.MkdirAll(cfg.ConfDir, 0o755); err != nil {
		return nil, fmt.Errorf("directory of CNI configuration: %w", err)
	}
	l.reload()
	var err error
	l.watch, err = watchDir(cfg.ConfDir, l.reload, cfg.Logger)
	return l, err
}

func (l *lists) close() {
	if l.watch != nil {
		l.watch.close()
	}
}

func (l *lists) setCIDRs(cidrs []netip.Prefix) {
	l.mu.Lock()
	l.cidrs = slices.Clone(cidrs)
	l.mu.Unlock()
}

// reload reads ConfDir. A first file that is not valid is an error: the next one is another network.
func (l *lists) reload() {
	list, path, err := loadFirst(l.cfg.ConfDir)
	l.mu.Lock()
	before, beforeErr := l.list, l.err
	same := before != nil && list != nil && string(before.Bytes) == string(list.Bytes)
	if !same {
		l.list, l.err = list, err
	}
	l.mu.Unlock()
	switch {
	case err != nil && (beforeErr == nil || beforeErr.Error() != err.Error()):
		l.log.Warn("no CNI network", "err", err)
	case err == nil && !same:
		l.log.Info("CNI network", "name", list.Name, "version", list.CNIVersion, "path", path)
	}
}

func loadFirst(dir string) (*libcni.NetworkConfigList, string, error) {
	files, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, "", fmt.Errorf("CNI configuration: %w: %w", err, errdefs.ErrUnavailable)
	}
	if len(files) == 0 {
		return nil, "", fmt.Errorf("no CNI configuration (*.conflist, *.conf, *.json) in %s: install a network plugin: %w", dir, errdefs.ErrUnavailable)
	}
	slices.Sort(files)
	list, err := loadFile(files[0])
	if err != nil {
		return nil, files[0], fmt.Errorf("CNI configuration %s: %w: %w", files[0], err, errdefs.ErrUnavailable)
	}
	return list, files[0], nil
}

func loadFile(path string) (*libcni.NetworkConfigList, error) {
	var list *libcni.NetworkConfigList
	var err error
	if filepath.Ext(path) == ".conflist" {
		list, err = libcni.NetworkConfFromFile(path)
	} else {
		list, err = loadSingle(path)
	}
	if err == nil && len(list.Plugins) == 0 {
		err = errors.New("it has no plugins")
	}
	return list, err
}

// loadSingle makes a list of the configuration of one plugin.
func loadSingle(path string) (*libcni.NetworkConfigList, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	conf, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	if conf.Network.Type == "" {
		return nil, errors.New(`it has no "type"`)
	}
	//lint:ignore SA1019 the files of one plugin (.conf) are still there on nodes
	return libcni.ConfListFromConf(conf)
}

func (l *lists) current() (*libcni.NetworkConfigList, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.list, l.err
}

// ready runs the plugins' STATUS where the list has a version that knows it, at most once in statusFor.
func (l *lists) ready(ctx context.Context) error {
	list, err := l.current()
	if err != nil {
		return err
	}
	l.mu.Lock()
	cached := l.status
	l.mu.Unlock()
	if cached.list == list && time.Since(cached.at) < statusFor {
		return cached.err
	}
	if _, err = l.runtime.ValidateNetworkList(ctx, list); err == nil {
		err = l.runtime.GetStatusNetworkList(ctx, list)
	}
	if err != nil {
		err = fmt.Errorf("CNI network %q: %w: %w", list.Name, err, errdefs.ErrUnavailable)
	}
	if ctx.Err() == nil { // a caller who gave up says nothing about the network
		l.mu.Lock()
		l.status = statusCache{list: list, at: time.Now(), err: err}
		l.mu.Unlock()
	}
	return err
}

// plan says how the pod will be added, so that it can be recorded before.
func (l *lists) plan(req Request, rates builtin.Rates) (*conflistRecord, error) {
	list, err := l.current()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	cidrs := l.cidrs
	l.mu.Unlock()
	return &conflistRecord{
		Network: list.Name,
		List:    json.RawMessage(list.Bytes),
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", req.Namespace},
			{"K8S_POD_NAME", req.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", req.PodID},
			{"K8S_POD_UID", req.UID},
		},
		Caps: capabilityArgs(req, rates, cidrs),
	}, checkArgs(req)
}

// checkArgs refuses what would change the meaning of CNI_ARGS.
func checkArgs(req Request) error {
	for _, v := range []string{req.Namespace, req.Name, req.UID} {
		if strings.ContainsAny(v, ";=\x00") {
			return fmt.Errorf("pod name, namespace or uid %q has a character that CNI_ARGS cannot carry: %w", v, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// capabilityArgs are offered to plugins; libcni passes each to those that declare it.
func capabilityArgs(req Request, rates builtin.Rates, cidrs []netip.Prefix) map[string]any {
	caps := make(map[string]any)
	var mappings []map[string]any
	for _, p := range req.PortMappings {
		if p.HostPort == 0 {
			continue
		}
		m := map[string]any{"hostPort": p.HostPort, "containerPort": p.ContainerPort, "protocol": strings.ToLower(p.Protocol)}
		if p.HostIP.IsValid() {
			m["hostIP"] = p.HostIP.String()
		}
		mappings = append(mappings, m)
	}
	if len(mappings) > 0 {
		caps["portMappings"] = mappings
	}
	bandwidth := make(map[string]any)
	for name, rate := range map[string]uint64{"ingress": rates.Ingress, "egress": rates.Egress} {
		if rate != 0 {
			bandwidth[name+"Rate"] = rate
			bandwidth[name+"Burst"] = min(rate, 1<<31-1) // bits; plugins hold it in 32 bits
		}
	}
	if len(bandwidth) > 0 {
		caps["bandwidth"] = bandwidth
	}
	var ranges [][]map[string]string
	for _, c := range cidrs {
		ranges = append(ranges, []map[string]string{{"subnet": c.String()}})
	}
	if len(ranges) > 0 {
		caps["ipRanges"] = ranges
	}
	if req.DNS != nil {
		caps["dns"] = map[string][]string{"servers": req.DNS.Servers, "searches": req.DNS.Searches, "options": req.DNS.Options}
	}
	if req.CgroupParent != "" {
		caps["cgroupPath"] = req.CgroupParent
	}
	if len(req.Annotations) > 0 {
		caps["io.kubernetes.cri.pod-annotations"] = req.Annotations
	}
	return caps
}

// of returns what libcni needs to repeat the call of a record.
func (l *lists) of(r *record, netns string) (*libcni.NetworkConfigList, *libcni.RuntimeConf, error) {
	list, err := libcni.NetworkConfFromBytes(r.Conflist.List)
	if err != nil {
		return nil, nil, fmt.Errorf("CNI network %q as recorded: %w", r.Conflist.Network, err)
	}
	return list, &libcni.RuntimeConf{ContainerID: r.Request.PodID, NetNS: netns, IfName: interfaceName, Args: r.Conflist.Args,
		CapabilityArgs: r.Conflist.Caps, CacheDir: l.cfg.CacheDir}, nil
}

// add runs ADD for a record that has been written.
func (l *lists) add(ctx context.Context, r *record) ([]netip.Addr, *conflistRecord, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.PluginTimeout)
	defer cancel()
	if err := l.gate.enter(ctx); err != nil {
		return nil, nil, fmt.Errorf("attach pod %s: wait for the plugins' GC: %w", r.Request.PodID, err)
	}
	defer l.gate.leave()
	list, rt, err := l.of(r, r.Netns)
	if err != nil {
		return nil, nil, err
	}
	answer, err := l.runtime.AddNetworkList(ctx, list, rt)
	if err != nil {
		return nil, nil, fmt.Errorf("attach pod %s by CNI network %q: %w", r.Request.PodID, list.Name, pluginError(ctx, err))
	}
	result, err := current.NewResultFromResult(answer)
	if err != nil {
		return nil, nil, fmt.Errorf("attach pod %s: result of CNI network %q: %w", r.Request.PodID, list.Name, err)
	}
	ips, err := podIPs(result)
	if err != nil {
		return nil, nil, fmt.Errorf("attach pod %s by CNI network %q: %w", r.Request.PodID, list.Name, err)
	}
	done := *r.Conflist
	done.Result, err = json.Marshal(result)
	return ips, &done, err
}

// podIPs are the addresses of the pod's own interfaces, as the plugins ordered them.
func podIPs(result *current.Result) ([]netip.Addr, error) {
	var ips []netip.Addr
	for _, ip := range result.IPs {
		if i := ip.Interface; i != nil && (*i < 0 || *i >= len(result.Interfaces) || result.Interfaces[*i].Sandbox == "") {
			continue
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			ips = append(ips, a.Unmap())
		}
	}
	if len(ips) == 0 {
		return nil, fmt.Errorf("the plugins gave the pod no address: %w", errdefs.ErrFailedPrecondition)
	}
	return ips, nil
}

// del runs DEL. An empty netns says that the namespace is gone.
func (l *lists) del(ctx context.Context, r *record, netns string) error {
	list, rt, err := l.of(r, netns)
	if err != nil {
		return err
	}
	if err := l.runtime.DelNetworkList(ctx, list, rt); err != nil {
		return fmt.Errorf("DEL of CNI network %q: %w", list.Name, pluginError(ctx, err))
	}
	return nil
}

func (l *lists) check(ctx context.Context, r *record) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.PluginTimeout)
	defer cancel()
	list, rt, err := l.of(r, r.Netns)
	if err != nil {
		return err
	}
	if err := l.runtime.CheckNetworkList(ctx, list, rt); err != nil && !tooOldForCheck(list, err) {
		return fmt.Errorf("CHECK of pod %s by CNI network %q: %w", r.Request.PodID, list.Name, pluginError(ctx, err))
	}
	return nil
}

// tooOldForCheck: CHECK came with CNI 0.4.0.
func tooOldForCheck(list *libcni.NetworkConfigList, err error) bool {
	return slices.Contains([]string{"", "0.1.0", "0.2.0", "0.3.0", "0.3.1"}, list.CNIVersion) && strings.Contains(err.Error(), "CHECK")
}

// gc tells plugins what is attached; they drop the rest. It is left out while pods are being added: the next
// reconciliation does it.
func (l *lists) gc(ctx context.Context, records func() map[string]*record) error {
	list, err := l.current()
	if err != nil {
		return nil // Ready says so
	}
	if !l.gate.close() {
		return nil
	}
	defer l.gate.open()
	ctx, cancel := context.WithTimeout(ctx, l.cfg.PluginTimeout)
	defer cancel()
	var args libcni.GCArgs
	for id, r := range records() {
		// One whose DEL is tried again is kept too: that DEL tells plugins more than GC does.
		if r.Conflist != nil && r.Conflist.Network == list.Name {
			args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: interfaceName})
		}
	}
	if err := l.runtime.GCNetworkList(ctx, list, &args); err != nil {
		return fmt.Errorf("GC of CNI network %q: %w", list.Name, pluginError(ctx, err))
	}
	return nil
}

// pluginError keeps the kind of a timeout, which a killed plugin's message hides.
func pluginError(ctx context.Context, err error) error {
	if ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		return fmt.Errorf("%w: %w", err, ctx.Err())
	}
	return err
}
