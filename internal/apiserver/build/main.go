// Command build makes the Kubernetes API server and etcd that tests run against,
// and prints their directory.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/countinghouse/countinghouse/internal/apiserver/binaries"
)

func main() {
	dir, err := binaries.Build(context.Background(), os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1)
	}
	fmt.Println(dir)
}
