package controllers

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// oldShard reads the shard as it was.
func oldShard(w *world, old *v1.InstrumentShard) client.Reader {
	return interceptor.NewClient(w.client, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			if shard, ok := o.(*v1.InstrumentShard); ok {
				old.DeepCopyInto(shard)
				return nil
			}
			return c.Get(ctx, key, o, opts...)
		},
	})
}

// oldClaims reads the volume claims as they were.
func oldClaims(w *world, old *corev1.PersistentVolumeClaimList) client.Reader {
	return interceptor.NewClient(w.client, interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, l client.ObjectList, opts ...client.ListOption) error {
			if claims, ok := l.(*corev1.PersistentVolumeClaimList); ok {
				old.DeepCopyInto(claims)
				return nil
			}
			return c.List(ctx, l, opts...)
		},
	})
}

// The cache still has the shard without the finalizer and the status that it was
// given a moment ago: what was remembered is not written over.
func TestOldShardInTheCache(t *testing.T) {
	w := newWorld(t)
	w.createShard(3)
	first := w.shard()
	if err := w.reconcile(); err != nil {
		t.Fatal(err)
	}
	want := w.shard().Status
	w.cache = oldShard(w, first)
	if err := w.reconcile(); err != nil { // it is looked at again at once
		t.Error(err)
	}
	got := w.shard().Status
	if got.Bootstrapped || len(got.Members) != 3 {
		t.Fatalf("%+v", got)
	}
	for i, m := range got.Members {
		if !m.First || m.ClaimUID == "" || m.ClaimUID != want.Members[i].ClaimUID {
			t.Errorf("member %+v, was %+v", m, want.Members[i])
		}
	}
	w.cache = nil
	w.converge()
	w.expect()
}

// The cache has the status, and not yet the volume claims that it tells of: none is
// taken for lost.
func TestOldClaimsInTheCache(t *testing.T) {
	w := newWorld(t)
	w.createShard(3)
	if err := w.reconcile(); err != nil {
		t.Fatal(err)
	}
	w.cache = oldClaims(w, new(corev1.PersistentVolumeClaimList))
	for range 3 {
		if err := w.reconcile(); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range w.shard().Status.Members {
		if m.Role == v1.RoleLost {
			t.Errorf("%+v", m)
		}
	}
	w.cache = nil
	w.converge()
	w.expect()
	if next := w.shard().Status.NextMember; next != 3 {
		t.Errorf("next member %d", next)
	}
}

// A shard comes back under its name, over the volumes that it left behind: the cache
// has none of them yet.
func TestOldClaimsWhenAShardComesBack(t *testing.T) {
	w := newWorld(t)
	w.createShard(3)
	w.converge()
	if err := w.client.Delete(context.Background(), w.shard()); err != nil {
		t.Fatal(err)
	}
	w.converge()
	w.createShard(3)
	w.cache = oldClaims(w, new(corev1.PersistentVolumeClaimList))
	if err := w.reconcile(); err != nil {
		t.Fatal(err)
	}
	if s := w.shard().Status; !s.Bootstrapped || len(s.Members) != 3 || s.Members[0].First {
		t.Errorf("formed anew over the volumes: %+v", s)
	}
	w.cache = nil
	w.converge()
	w.expect()
}

// The same, without volumes left behind, while the cache still has some: a shard is
// formed, of members that have a volume.
func TestGoneClaimsWhenAShardComesBack(t *testing.T) {
	w := newWorld(t)
	w.createShard(3)
	w.spec(func(s *v1.InstrumentShardSpec) { s.Storage.Retention.WhenDeleted = v1.RetentionDelete })
	w.converge()
	var claims corev1.PersistentVolumeClaimList
	if err := w.list(&claims); err != nil {
		t.Fatal(err)
	}
	if err := w.client.Delete(context.Background(), w.shard()); err != nil {
		t.Fatal(err)
	}
	w.converge()
	w.formed, w.members = false, map[string]*storagepb.Member{}
	w.createShard(3)
	w.cache = oldClaims(w, &claims)
	if err := w.reconcile(); err != nil {
		t.Fatal(err)
	}
	w.cache = nil
	w.converge()
	w.expect()
	if s := w.shard(); meta.IsStatusConditionTrue(s.Status.Conditions, v1.ConditionQuorumLost) {
		t.Errorf("%+v", s.Status)
	}
}
