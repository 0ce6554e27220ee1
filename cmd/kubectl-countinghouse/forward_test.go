package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// apiServer forwards ports of pods as one does that knows no websockets: to the
// address of a member, or with an error of the kubelet's where there is none.
func apiServer(t *testing.T, addresses map[string]string) *rest.Config {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		pod, _ := strings.CutPrefix(req.URL.Path, "/api/v1/namespaces/trading/pods/")
		pod, ok := strings.CutSuffix(pod, "/portforward")
		if !ok || req.Method != http.MethodPost {
			http.Error(w, "unexpected "+req.URL.Path, http.StatusBadRequest)
			return
		}
		if _, err := httpstream.Handshake(req, w, []string{portforward.PortForwardProtocolV1Name}); err != nil {
			return
		}
		streams := make(chan httpstream.Stream, 2)
		conn := spdy.NewResponseUpgrader().UpgradeResponse(w, req, func(st httpstream.Stream, _ <-chan struct{}) error {
			streams <- st
			return nil
		})
		if conn == nil {
			return
		}
		defer conn.Close()
		failures, data := <-streams, <-streams
		if failures.Headers().Get(corev1.StreamType) != corev1.StreamTypeError || data.Headers().Get(corev1.PortHeader) != "7100" {
			t.Errorf("streams %v, %v", failures.Headers(), data.Headers())
		}
		to, err := net.Dial("tcp", addresses[pod])
		if err != nil {
			_, _ = io.WriteString(failures, "nobody listens in "+pod)
			failures.Close()
			data.Close()
			<-conn.CloseChan()
			return
		}
		defer to.Close()
		go func() {
			_, _ = io.Copy(data, to)
			data.Close()
		}()
		_, _ = io.Copy(to, data)
	}))
	t.Cleanup(s.Close)
	return &rest.Config{Host: s.URL}
}

// A member is asked through the API server, with calls over more than one
// connection, and the kubelet's reason reaches the caller.
func TestMembersAreReachedThroughTheAPIServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	storagepb.RegisterAdminServer(server, &fakeNode{status: &storagepb.StatusResponse{Id: "futures-0", State: "leader"}})
	go server.Serve(l)
	t.Cleanup(server.Stop)
	forward, err := forwarder(apiServer(t, map[string]string{"futures-0": l.Addr().String()}))
	if err != nil {
		t.Fatal(err)
	}
	s := &session{reach: forward, timeout: 10 * time.Second}
	shard := &v1.InstrumentShard{}
	shard.Spec.TLS.Mode = v1.TLSOff
	shard.Namespace, shard.Name, shard.Spec.Cluster, shard.Spec.Instruments = "trading", "futures", "cffex", []string{"IF2501"}
	for range 2 {
		c, err := s.members(t.Context(), shard, []string{"futures-0", "futures-1"})
		if err != nil {
			t.Fatal(err)
		}
		st, err := c.Status(t.Context(), "futures", "futures-0")
		if err != nil || st.Id != "futures-0" {
			t.Errorf("%v, %v", st, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	conn, err := forward(t.Context(), "trading", "futures-1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "nobody listens in futures-1") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := forward(ctx, "trading", "futures-0"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
