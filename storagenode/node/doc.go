// Package node runs a storage node: its command line, its configuration, and its
// life from start to stop. cmd/storagenode is this package and nothing else, and
// other programs run a node by handing their arguments to Command.
package node
