package trim

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestText needs a program of more than a few pages, as this one is.
func TestText(t *testing.T) {
	before := fileRSS(t)
	Text()
	after := fileRSS(t)
	if after >= before {
		t.Errorf("%d KiB of files are mapped, before %d", after, before)
	}
	if strings.ToUpper("still runs") != "STILL RUNS" {
		t.Error("the program does not run as before")
	}
}

// fileRSS is how much of files is mapped, KiB.
func fileRSS(t *testing.T) int {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "RssFile:"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no RssFile in /proc/self/status")
	return 0
}
