package cri

import (
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/engine/spec"
)

func mappings(numbers ...uint32) []*runtime.IDMapping {
	var all []*runtime.IDMapping
	for i := 0; i < len(numbers); i += 3 {
		all = append(all, &runtime.IDMapping{ContainerId: numbers[i], HostId: numbers[i+1], Length: numbers[i+2]})
	}
	return all
}

func TestUserNamespaceErrors(t *testing.T) {
	good := mappings(0, 65536, 65536)
	for want, options := range map[string]*runtime.UserNamespace{
		"invalid u.gids: required":                 {Uids: good},
		"invalid u.uids: required":                 {Gids: good},
		"invalid u.uids: container_id 0":           {Uids: mappings(1, 65536, 65536), Gids: good},
		"invalid u.gids[0].length: is 0":           {Uids: good, Gids: mappings(0, 65536, 0)},
		"invalid u.uids[1]: overlaps with mapping": {Uids: mappings(0, 1000, 100000, 0, 2000, 100000), Gids: good},
		"invalid u.gids[1]: overlaps":              {Uids: good, Gids: mappings(0, 1000, 100, 100, 1050, 100)},
		"invalid u.uids[0]: 2 ids from 4294967294": {Uids: mappings(0, 1<<32-2, 2), Gids: good},
		"invalid u: mode NODE has no":              {Mode: runtime.NamespaceMode_NODE, Uids: good},
		"invalid u.mode: TARGET":                   {Mode: runtime.NamespaceMode_TARGET},
	} {
		_, err := userNamespaceOf("u", options)
		expect(t, err, want)
	}
	if got, err := userNamespaceOf("u", &runtime.UserNamespace{Uids: mappings(0, 1000, 100, 100, 5000, 10), Gids: good}); err != nil || len(got.UIDs) != 2 {
		t.Errorf("several mappings: %+v, %v", got, err)
	}
}

func TestContainerUserNamespace(t *testing.T) {
	good := &runtime.UserNamespace{Uids: mappings(0, 65536, 65536), Gids: mappings(0, 65536, 65536)}
	pod, err := userNamespaceOf("u", good)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		options *runtime.UserNamespace
		pod     *spec.UserNamespace
		refused bool
	}{
		{nil, nil, false}, {nil, pod, false}, {good, pod, false}, {&runtime.UserNamespace{Mode: runtime.NamespaceMode_NODE}, nil, false},
		{good, nil, true}, {&runtime.UserNamespace{Mode: runtime.NamespaceMode_NODE}, pod, true},
		{&runtime.UserNamespace{Uids: good.Uids, Gids: mappings(0, 65536, 1)}, pod, true},
	} {
		if err := sameUserNamespace("u", c.options, c.pod); (err != nil) != c.refused {
			t.Errorf("%v in %v: %v", c.options, c.pod, err)
		}
	}
}
