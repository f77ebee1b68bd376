// Package image is the image store: it pulls images from registries, keeps their blobs and layers, and makes the root
// filesystems of containers from them.
//
// A Store owns <root>/content, <root>/meta.db and <root>/snapshots, and is the only user of all three. Blobs, image
// records and leases live in containerd's content store and metadata database; the snapshots of layers are named by their
// chain ID in our own snapshotter. An image record is written last, so an image that is listed is whole.
package image

import (
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/image/registry"
)

// Auth is the credential of one pull. The zero value is anonymous.
type Auth = registry.Auth

// Image is an image that is here, whole. It is a copy: callers may keep it, and must not write to its slices and maps.
type Image struct {
	// ID is the digest of the configuration, "sha256:...".
	ID string
	// RepoTags are the names by tag ("docker.io/library/busybox:1.36"), sorted.
	RepoTags []string
	// RepoDigests are the names by digest ("docker.io/library/busybox@sha256:..."), sorted.
	RepoDigests []string
	// Ref is the first of RepoDigests, or the ID when there is none.
	Ref string
	// Size is what the image's blobs take in bytes as the registry serves them: manifest, configuration, layers.
	Size int64
	// UID is the user of the configuration when that is a number, else nil.
	UID *int64
	// Username is the user of the configuration when that is a name, else "".
	Username string
	// Pinned says that the image must not be garbage collected (Config.Pinned).
	Pinned bool
	// Platform is what the configuration says the image runs on.
	Platform ocispec.Platform
	// Config is how the configuration wants containers to be run.
	Config ocispec.ImageConfig
	// Created is the configuration's time of creation; zero when it has none.
	Created time.Time
	// Labels of the configuration. They come from outside and are never trusted.
	Labels map[string]string
	// LayerIDs are the digests of the layers' tar streams (diffIDs), lowest first.
	LayerIDs []string
	// Checkpoint says that the image is a container's checkpoint: its layers hold that, not a root filesystem.
	Checkpoint bool
}

// FsInfo is what images and layers take on their filesystem.
type FsInfo struct {
	// MountPoint is the directory that holds them.
	MountPoint string
	// Bytes and Inodes are those of blobs and committed layers.
	Bytes, Inodes uint64
	// When it was measured.
	When time.Time
}

// PullOptions are what a pull may choose.
type PullOptions struct {
	// Auth is the credential for the registry.
	Auth Auth
	// Platform chooses from an index; nil is this machine's.
	Platform *ocispec.Platform
	// Watch is told several times a second how far the pull is, one call at a time. It must not block for long. May be nil.
	Watch func(PullStatus)
}
