package spec

// User is who a container's process runs as.
type User struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
	// AdditionalGIDs are sorted and include the primary one.
	AdditionalGIDs []uint32 `json:"additionalGids,omitempty"`
	// Home is the directory that the image's /etc/passwd gives, else "/".
	Home string `json:"home,omitempty"`
}
