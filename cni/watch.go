package cni

import (
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// watcher calls back after the files of a directory changed. A directory that is taken away is looked for again.
type watcher struct {
	stop chan struct{}
	done sync.WaitGroup
}

const (
	settle   = 50 * time.Millisecond // a file is written in more than one step
	lookAlso = 10 * time.Second      // for a directory that was replaced, or a filesystem that does not notify
)

func watchDir(dir string, changed func(), log *slog.Logger) (*watcher, error) {
	fs, err := fsnotify.NewWatcher()
	if err == nil {
		if err = fs.Add(dir); err != nil {
			_ = fs.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	w := &watcher{stop: make(chan struct{})}
	w.done.Go(func() {
		defer fs.Close()
		w.run(fs, dir, changed, log)
	})
	return w, nil
}

func (w *watcher) run(fs *fsnotify.Watcher, dir string, changed func(), log *slog.Logger) {
	tick := time.NewTicker(lookAlso)
	defer tick.Stop()
	quiet := time.NewTimer(time.Hour)
	quiet.Stop()
	for {
		select {
		case <-w.stop:
			return
		case <-fs.Events:
			quiet.Reset(settle)
		case err := <-fs.Errors:
			log.Warn("watch CNI configuration", "dir", dir, "err", err)
			quiet.Reset(settle)
		case <-quiet.C:
			changed()
		case <-tick.C:
			if len(fs.WatchList()) == 0 { // the directory was removed; so was the watch
				_ = os.MkdirAll(dir, 0o755)
				if err := fs.Add(dir); err != nil {
					log.Warn("watch CNI configuration", "dir", dir, "err", err)
				}
			}
			changed()
		}
	}
}

func (w *watcher) close() {
	close(w.stop)
	w.done.Wait()
}
