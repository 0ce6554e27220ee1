// Command kindup makes sure that there is a kind cluster with the project's image on
// its nodes. It is the kind of cluster that the tests use, to try things on by hand.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	kind "sigs.k8s.io/kind/pkg/cluster"
	"sigs.k8s.io/kind/pkg/cluster/nodeutils"
	"sigs.k8s.io/kind/pkg/cmd"
)

const config = `
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes: [{role: control-plane}, {role: worker}, {role: worker}, {role: worker}]
`

func main() {
	name := flag.String("name", "countinghouse", "name of the cluster")
	image := flag.String("image", "countinghouse:dev", "image that is put on its nodes")
	flag.Parse()
	if err := up(*name, *image); err != nil {
		fmt.Fprintln(os.Stderr, "kindup:", err)
		os.Exit(1)
	}
}

func up(name, image string) error {
	p := kind.NewProvider(kind.ProviderWithDocker(), kind.ProviderWithLogger(cmd.NewLogger()))
	names, err := p.List()
	if err != nil {
		return fmt.Errorf("Docker does not answer: start it: %w", err)
	}
	if !slices.Contains(names, name) {
		options := []kind.CreateOption{kind.CreateWithRawConfig([]byte(config)), kind.CreateWithWaitForReady(3 * time.Minute)}
		if node := os.Getenv("KIND_NODE_IMAGE"); node != "" {
			options = append(options, kind.CreateWithNodeImage(node))
		}
		if err := p.Create(name, options...); err != nil {
			return err
		}
	}
	return load(p, name, image)
}

func load(p *kind.Provider, name, image string) error {
	dir, err := os.MkdirTemp("", "kindup")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	archive := filepath.Join(dir, "image.tar")
	if out, err := exec.Command("docker", "save", "--output", archive, image).CombinedOutput(); err != nil {
		return fmt.Errorf("docker save %s: %w\n%s", image, err, out)
	}
	nodes, err := p.ListInternalNodes(name)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		f, err := os.Open(archive)
		if err != nil {
			return err
		}
		err = nodeutils.LoadImageArchive(n, f)
		_ = f.Close() // it was read
		if err != nil {
			return fmt.Errorf("node %s: %w", n, err)
		}
	}
	fmt.Printf("image %s is on the %d nodes of cluster %s\n", image, len(nodes), name)
	return nil
}
