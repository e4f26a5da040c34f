// CoreDNS with the few plugins that a test needs, and a client that resolves with Go's own resolver,
// in one program: the name it is called by decides.
//
// What may not live here: anything of CoreDNS itself. It is the published module.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/file"
)

func main() {
	switch name := filepath.Base(os.Args[0]); name {
	case "coredns":
		coremain.Run()
	case "resolve-go":
		os.Exit(resolve())
	default:
		fmt.Fprintf(os.Stderr, "called as %q: call it coredns or resolve-go\n", name)
		os.Exit(2)
	}
}
