// Command exchange runs an exchange: order entry, market data and accounts over
// gRPC, in front of the shards that keep its records.
package main

import (
	"context"
	"os"
)

func main() { os.Exit(execute(context.Background(), os.Args[1:], os.Stdout, os.Stderr)) }
