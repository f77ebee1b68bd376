// Package keeper is the process that holds what must survive the shim: descriptors, and the parenthood of processes whose
// parent died. It decides nothing. The contract between keeper and shim is shim/SHIM.md.
//
// The package uses golang.org/x/sys/unix and very little else, because a keeper runs on every node for as long as the node
// is up: no net, no encoding/json, no fmt.
package keeper

// ExitServed is the exit status by which a shim says that another shim serves its state directory.
const ExitServed = 75

// LinkFD is the descriptor of a shim, and of an adopting keeper, at which it finds its end of the socket pair.
const LinkFD = 3

// MaxDescriptors is how many descriptors one message can carry (SCM_MAX_FD of the kernel's include/net/scm.h).
const MaxDescriptors = 253

// MaxMessage is the longest message, in bytes.
const MaxMessage = 8 << 10
