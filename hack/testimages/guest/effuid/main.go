// Command effuid prints its effective user id. Installed setuid root it shows whether no_new_privs holds.
package main

import (
	"fmt"
	"os"
)

func main() { fmt.Printf("Effective uid: %d\n", os.Geteuid()) }
