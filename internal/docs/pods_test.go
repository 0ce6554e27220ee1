package docs

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/controllers/resource"
	"github.com/countinghouse/countinghouse/storagenode/node"
)

// A storage node takes the arguments that its pod gives it.
func TestPodsArgumentsAreANodes(t *testing.T) {
	s := &v1.InstrumentShard{ObjectMeta: metav1.ObjectMeta{Name: "futures", Namespace: "trading"}}
	s.Spec.Cluster = "demo"
	for _, f := range []resource.Formation{{}, {Peers: []string{"futures-0", "futures-1"}}} {
		pod, err := resource.Pod(s, "futures-0", f, resource.Defaults{})
		if err != nil {
			t.Fatal(err)
		}
		args := pod.Spec.Containers[0].Args
		command := node.Command()
		if err := command.ParseFlags(args); err != nil {
			t.Errorf("%v: %v", args, err)
		}
		for _, name := range []string{"cluster", "shard", "id", "listen", "advertise", "data-dir"} {
			if !command.Flags().Changed(name) {
				t.Errorf("--%s is not given", name)
			}
		}
	}
}
