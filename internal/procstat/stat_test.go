package procstat

import (
	"os"
	"strconv"
	"testing"
)

func TestStat(t *testing.T) {
	s := Parse([]byte("7 (a) b (c) R 1 2 3\n"))
	for number, want := range map[int]string{1: "", State: "R", Parent: "1", 6: "3", Threads: ""} {
		if got := s.Field(number); got != want {
			t.Errorf("field %d is %q, want %q", number, got, want)
		}
	}
	if Parse(nil).Field(State) != "" {
		t.Error("an empty file has a state")
	}
	own, err := Read(os.Getpid())
	if err != nil || own.Field(Parent) != strconv.Itoa(os.Getppid()) || own.Field(Start) == "" || own.Field(ExitCode) == "" {
		t.Errorf("%v, %v", own, err)
	}
}
