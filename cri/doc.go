// Package cri is the CRI v1 front: it translates between the Container Runtime Interface of Kubernetes and package
// engine and package image, and keeps no state of its own.
//
// Each request is checked and translated by a pure function (pod.go, container.go, security.go) before anything is done,
// and errors name the field as it is called in api.proto. What the engine cannot do yet is refused by name; nothing that
// matters to a workload is dropped silently. Methods that are not written here answer Unimplemented.
package cri
