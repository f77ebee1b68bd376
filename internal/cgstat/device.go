package cgstat

import (
	"os"
	"strconv"
	"strings"
)

// DeviceName is the path of a block device's node ("/dev/sda1"), "" for one that has none, such as what btrfs and overlayfs
// number.
func DeviceName(major, minor uint32) string {
	data, err := os.ReadFile("/sys/dev/block/" + strconv.FormatUint(uint64(major), 10) + ":" + strconv.FormatUint(uint64(minor), 10) + "/uevent")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
			return "/dev/" + name
		}
	}
	return ""
}
