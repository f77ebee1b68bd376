package spec

import (
	"bytes"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
)

// User is who a container's process runs as.
type User struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
	// AdditionalGIDs are sorted and include the primary one.
	AdditionalGIDs []uint32 `json:"additionalGids,omitempty"`
	// Home is the directory that the image's /etc/passwd gives, else "/".
	Home string `json:"home,omitempty"`
}

// accounts are the image's users and groups.
type accounts struct {
	users  []user.User
	groups []user.Group
}

// ResolveUser finds out who a container runs as: what the security context asks for, else the image's user
// ("name", "uid", "name:group" ...), else root. passwd and group are the contents of the image's files, nil when there
// are none. A name that is not in them is ErrInvalidArgument; a number need not be.
func ResolveUser(s Security, imageUser string, passwd, group []byte) (User, error) {
	var a accounts
	var err error
	if a.users, err = user.ParsePasswd(bytes.NewReader(passwd)); err != nil {
		return User{}, invalid("the image's /etc/passwd: %v", err)
	}
	if a.groups, err = user.ParseGroup(bytes.NewReader(group)); err != nil {
		return User{}, invalid("the image's /etc/group: %v", err)
	}
	name, groupName, err := wanted(s, imageUser)
	if err != nil {
		return User{}, err
	}
	u, login, err := a.user(name)
	if err != nil {
		return User{}, err
	}
	if groupName != "" {
		if u.GID, err = a.group(groupName); err != nil {
			return User{}, err
		}
	}
	gids := []uint32{u.GID}
	if !s.SupplementalStrict && login != "" {
		gids = append(gids, a.memberships(login)...)
	}
	for _, g := range s.SupplementalGroups {
		if g < 0 || g > math.MaxUint32-1 {
			return User{}, invalid("supplemental group %d is not a group id", g)
		}
		gids = append(gids, uint32(g))
	}
	slices.Sort(gids)
	u.AdditionalGIDs = slices.Compact(gids)
	return u, nil
}

// wanted is the user and the group to look up; an empty group is the user's own.
func wanted(s Security, imageUser string) (name, group string, err error) {
	switch {
	case s.RunAsUser != nil && s.RunAsUsername != "":
		return "", "", invalid("run_as_user %d and run_as_username %q are both set: only one may be", *s.RunAsUser, s.RunAsUsername)
	case s.RunAsGroup != nil && s.RunAsUser == nil && s.RunAsUsername == "":
		return "", "", invalid("run_as_group %d is set without run_as_user or run_as_username", *s.RunAsGroup)
	case s.RunAsUser != nil:
		name = strconv.FormatInt(*s.RunAsUser, 10)
	case s.RunAsUsername != "":
		if name = s.RunAsUsername; strings.Contains(name, ":") {
			return "", "", invalid("run_as_username %q has a colon", name)
		}
	default:
		name, group, _ = strings.Cut(imageUser, ":")
	}
	if s.RunAsGroup != nil {
		group = strconv.FormatInt(*s.RunAsGroup, 10)
	}
	return name, group, nil
}

// user finds a user by name or number, and the login name when there is one.
func (a accounts) user(name string) (User, string, error) {
	if name == "" {
		name = "0"
	}
	uid, numeric, err := id("user", name)
	if err != nil {
		return User{}, "", err
	}
	for _, u := range a.users {
		if u.Name == name || numeric && int64(u.Uid) == int64(uid) {
			if u.Uid < 0 || u.Gid < 0 || int64(u.Uid) >= math.MaxUint32 || int64(u.Gid) >= math.MaxUint32 {
				return User{}, "", invalid("user %q has uid %d and gid %d in the image's /etc/passwd", name, u.Uid, u.Gid)
			}
			return User{UID: uint32(u.Uid), GID: uint32(u.Gid), Home: home(u.Home)}, u.Name, nil
		}
	}
	if !numeric {
		return User{}, "", invalid("user %q is not in the image's /etc/passwd", name)
	}
	return User{UID: uid, Home: "/"}, "", nil
}

func (a accounts) group(name string) (uint32, error) {
	gid, numeric, err := id("group", name)
	if err != nil {
		return 0, err
	}
	for _, g := range a.groups {
		if g.Name == name && g.Gid >= 0 && int64(g.Gid) < math.MaxUint32 {
			return uint32(g.Gid), nil
		}
	}
	if !numeric {
		return 0, invalid("group %q is not in the image's /etc/group", name)
	}
	return gid, nil
}

// memberships are the groups that list a login name.
func (a accounts) memberships(login string) []uint32 {
	var gids []uint32
	for _, g := range a.groups {
		if slices.Contains(g.List, login) && g.Gid >= 0 && int64(g.Gid) < math.MaxUint32 {
			gids = append(gids, uint32(g.Gid))
		}
	}
	return gids
}

// id reads a number of 32 bits; the highest one means "no change" to the kernel and is no id.
func id(what, name string) (n uint32, numeric bool, err error) {
	v, err := strconv.ParseInt(name, 10, 64)
	if err != nil {
		return 0, false, nil
	}
	if v < 0 || v >= math.MaxUint32 {
		return 0, false, invalid("%s %s is not an id", what, name)
	}
	return uint32(v), true, nil
}

// home keeps what comes from an image from reaching the environment as more than a path.
func home(dir string) string {
	if !strings.HasPrefix(dir, "/") || strings.ContainsRune(dir, 0) {
		return "/"
	}
	return dir
}
