package native

import (
	"fmt"
	"strings"
	"sync"

	"github.com/moby/sys/capability"
)

// capabilitySets are the five sets of a process as bits.
type capabilitySets struct {
	bounding, effective, permitted, inheritable, ambient uint64
}

var capabilityNumbers = sync.OnceValue(func() map[string]int {
	numbers := map[string]int{}
	for _, c := range capability.ListKnown() {
		numbers["CAP_"+strings.ToUpper(c.String())] = int(c)
	}
	return numbers
})

// capabilities turns the names into sets. What we do not have cannot be given and is left out, with a warning.
func (c *compiler) capabilities() (capabilitySets, error) {
	var sets capabilitySets
	spec := c.in.process.Capabilities
	if spec == nil {
		return sets, nil
	}
	lacking := map[string]bool{}
	for _, s := range []struct {
		field string
		names []string
		set   *uint64
	}{
		{"bounding", spec.Bounding, &sets.bounding}, {"effective", spec.Effective, &sets.effective}, {"permitted", spec.Permitted, &sets.permitted},
		{"inheritable", spec.Inheritable, &sets.inheritable}, {"ambient", spec.Ambient, &sets.ambient},
	} {
		for _, name := range s.names {
			number, ok := capabilityNumbers()[name]
			if !ok {
				return sets, fmt.Errorf("process.capabilities.%s: %q is not a capability", s.field, name)
			}
			if c.privileges()&(1<<number) == 0 {
				if !lacking[name] {
					lacking[name] = true
					c.warn("process.capabilities: %s is not ours to give, left out", name)
				}
				continue
			}
			*s.set |= 1 << number
		}
	}
	return sets, nil
}
