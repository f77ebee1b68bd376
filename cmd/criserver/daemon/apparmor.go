package daemon

import (
	"log/slog"
	"os"
	"strings"

	"github.com/moby/profiles/apparmor"
)

// loadAppArmor sees to it that the default profile is loaded and answers with its name; with "" where AppArmor is off, where no
// profile is wanted, and where it cannot be loaded, which is logged.
func loadAppArmor(profile string, log *slog.Logger) string {
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if err != nil || !strings.HasPrefix(string(enabled), "Y") || profile == "" {
		return ""
	}
	loaded, err := apparmor.IsLoaded(profile)
	if err == nil && !loaded {
		err = apparmor.InstallDefault(profile)
	}
	if err != nil {
		log.Warn("containers without an AppArmor profile of their own run unconfined, since the default one cannot be loaded: install apparmor_parser (package apparmor) and mount securityfs",
			"profile", profile, "error", err)
		return ""
	}
	return profile
}
