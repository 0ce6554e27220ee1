// Command storagenode runs one member of a shard; see package node.
package main

import (
	"context"
	"os"

	"github.com/countinghouse/countinghouse/storagenode/node"
)

func main() { os.Exit(node.Execute(context.Background(), os.Args[1:])) }
