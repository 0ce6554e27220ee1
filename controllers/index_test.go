package controllers

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	built "github.com/countinghouse/countinghouse/controllers/resource"
)

// A look at one shard reads its own pods and claims by an index of the cache, and finds
// what a look by labels does.
func TestLookReadsByIndex(t *testing.T) {
	var objects []client.Object
	for _, shard := range []string{"futures", "options"} {
		for n := range 3 {
			meta := &corev1.Pod{}
			meta.Name, meta.Namespace, meta.Labels = fmt.Sprintf("%s-%d", shard, n), "trading", built.ShardLabels(shard)
			claim := &corev1.PersistentVolumeClaim{ObjectMeta: meta.ObjectMeta}
			objects = append(objects, meta, claim)
		}
	}
	c := fake.NewClientBuilder().WithScheme(newScheme(t)).WithObjects(objects...).
		WithIndex(&corev1.Pod{}, indexShard, shardOf).WithIndex(&corev1.PersistentVolumeClaim{}, indexShard, shardOf).Build()
	lists := 0
	counted := interceptor.NewClient(c, interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, l client.ObjectList, opts ...client.ListOption) error {
			o := new(client.ListOptions).ApplyOptions(opts)
			if o.FieldSelector == nil || o.FieldSelector.String() != "shard=futures" {
				t.Errorf("%T is read by %v", l, o.FieldSelector)
			}
			lists++
			return c.List(ctx, l, opts...)
		},
	})
	s := new(v1.InstrumentShard)
	s.Name, s.Namespace = "futures", "trading"
	p := &pass{r: &Reconciler{Client: counted, indexed: true}, shard: s}
	if err := p.observe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(p.pods) != 3 || len(p.claims) != 3 || p.pods["futures-2"] == nil || lists != 2 {
		t.Errorf("%d pods, %d claims in %d lists", len(p.pods), len(p.claims), lists)
	}
}
