// Package arrows holds the test that keeps the import arrows of docs/architecture.md. It has no code of its own.
package arrows
