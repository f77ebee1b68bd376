package nri

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
)

// logger has the library log as everything else does.
type logger struct{ log *slog.Logger }

func (l logger) write(ctx context.Context, level slog.Level, format string, args []any) {
	if ctx == nil {
		ctx = context.Background()
	}
	if l.log.Enabled(ctx, level) {
		l.log.Log(ctx, level, "nri: "+fmt.Sprintf(format, args...))
	}
}

// What the library says of what it does by itself is of use to those who write plugins.

func (l logger) Debugf(ctx context.Context, format string, args ...any) {
	l.write(ctx, slog.LevelDebug, format, args)
}

func (l logger) Infof(ctx context.Context, format string, args ...any) {
	l.write(ctx, slog.LevelDebug, format, args)
}

func (l logger) Warnf(ctx context.Context, format string, args ...any) {
	l.write(ctx, slog.LevelWarn, format, args)
}

func (l logger) Errorf(ctx context.Context, format string, args ...any) {
	l.write(ctx, slog.LevelError, format, args)
}

// counter learns from the library how many plugins there are.
type counter struct{ active *atomic.Int64 }

func (c *counter) UpdatePluginCount(n int) { c.active.Store(int64(n)) }

func (*counter) RecordPluginInvocation(string, string, error) {}

func (*counter) RecordPluginLatency(string, string, time.Duration) {}

func (*counter) RecordPluginAdjustments(string, string, *adaptation.ContainerAdjustment, int, int) {}

// deprecations logs what plugins use that will be gone one day.
type deprecations struct{ log *slog.Logger }

func (d deprecations) PluginWarning(_ context.Context, what adaptation.Deprecation, plugin, details string) {
	d.log.Info("a plugin uses what is deprecated", "plugin", plugin, "what", what.String(), "details", details)
}
