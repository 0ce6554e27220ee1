package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	kube "sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/controllers/resource"
	"github.com/countinghouse/countinghouse/identity"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// view is a shard as the API server and its members show it.
type view struct {
	shard  *v1.InstrumentShard
	pods   map[string]*corev1.Pod
	claims map[string]*corev1.PersistentVolumeClaim
	// asked holds, by member, what each has answered.
	asked map[string]answer
	// leader is the status of the member that leads in the latest term, nil for none.
	leader *storagepb.StatusResponse
}

// answer is a member's own status, or why there is none.
type answer struct {
	status *storagepb.StatusResponse
	err    error
}

// members returns a client of a shard's members, nil if none can be reached.
func (s *session) members(ctx context.Context, shard *v1.InstrumentShard, ids []string) (*client.Client, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	m := &client.Map{Cluster: shard.Spec.Cluster, Shards: []client.Shard{{Name: shard.Name, Instruments: shard.Spec.Instruments}}}
	for _, id := range ids {
		m.Shards[0].Members = append(m.Shards[0].Members, client.Member{ID: id, Address: resource.Address(shard, id)})
	}
	certificate, err := s.certificate(ctx, shard)
	if err != nil {
		return nil, err
	}
	return client.New(m, client.Options{AttemptTimeout: s.timeout, TLS: certificate, Dial: []grpc.DialOption{
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			pod, _, _ := strings.Cut(address, ".") // members name each other by their addresses in the cluster
			return s.reach(ctx, shard.Namespace, pod)
		}),
	}})
}

// certificate is the one with which the members of a shard are met, nil where they
// want none: the operator's, which whoever administers shares.
func (s *session) certificate(ctx context.Context, shard *v1.InstrumentShard) (*identity.Source, error) {
	name := resource.OperatorSecret(shard)
	if name == "" {
		return nil, nil
	}
	secret := new(corev1.Secret)
	if err := s.kube.Get(ctx, kube.ObjectKey{Namespace: shard.Namespace, Name: name}, secret); err != nil {
		return nil, fmt.Errorf("shard %s: its members want the certificate in secret %s: %w", shard.Name, name, apiError(err))
	}
	source, err := identity.FromPEM(secret.Data[identity.CertFile], secret.Data[identity.KeyFile], secret.Data[identity.TrustFile], identity.Options{})
	if err != nil {
		return nil, fmt.Errorf("shard %s: the certificate in secret %s: %w", shard.Name, name, err)
	}
	return source, nil
}

// reason is what a member, or the way to it, says of an error of a call.
func reason(err error) string {
	var answered interface{ GRPCStatus() *status.Status }
	if errors.As(err, &answered) {
		return answered.GRPCStatus().Message()
	}
	return err.Error()
}

// look asks the API server and every member that runs.
func (s *session) look(ctx context.Context, shard *v1.InstrumentShard) (*view, error) {
	v := &view{shard: shard, pods: map[string]*corev1.Pod{}, claims: map[string]*corev1.PersistentVolumeClaim{}, asked: map[string]answer{}}
	own := []kube.ListOption{kube.InNamespace(shard.Namespace), kube.MatchingLabels(resource.ShardLabels(shard.Name))}
	var pods corev1.PodList
	var claims corev1.PersistentVolumeClaimList
	if err := s.kube.List(ctx, &pods, own...); err != nil {
		return nil, apiError(err)
	}
	if err := s.kube.List(ctx, &claims, own...); err != nil {
		return nil, apiError(err)
	}
	for i := range pods.Items {
		v.pods[pods.Items[i].Name] = &pods.Items[i]
	}
	for i := range claims.Items {
		v.claims[claims.Items[i].Name] = &claims.Items[i]
	}
	return v, s.ask(ctx, v)
}

// running returns the members that have a running pod, in the status's order.
func (v *view) running() (ids []string) {
	for _, m := range v.shard.Status.Members {
		if isRunning(v.pods[m.ID]) {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// ask asks every running member for its status, all at once.
func (s *session) ask(ctx context.Context, v *view) error {
	ids := v.running()
	c, err := s.members(ctx, v.shard, ids)
	if c == nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			st, err := c.Status(ctx, v.shard.Name, id)
			mu.Lock()
			defer mu.Unlock()
			v.asked[id] = answer{st, err}
		})
	}
	wg.Wait()
	for _, a := range v.asked {
		if a.err == nil && a.status.State == client.StateLeader && (v.leader == nil || a.status.Term > v.leader.Term) {
			v.leader = a.status
		}
	}
	return nil
}
