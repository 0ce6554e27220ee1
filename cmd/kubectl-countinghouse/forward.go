package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream" //nolint:staticcheck // client-go's dialers are of its types
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	streaming "k8s.io/streaming/pkg/httpstream"

	"github.com/countinghouse/countinghouse/controllers/resource"
)

// forwarder reaches pods through the API server. Each connection is a port-forward
// of its own, and no local port is opened for it.
func forwarder(config *rest.Config) (reach, error) {
	set, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, namespace, pod string) (net.Conn, error) {
		url := set.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
		tunnel, err := portforward.NewSPDYOverWebsocketDialer(url, config)
		if err != nil {
			return nil, err
		}
		dialer := portforward.NewFallbackDialer(tunnel, spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url),
			withoutWebsockets)
		conn, err := dialWithin(ctx, dialer)
		if err != nil {
			return nil, fmt.Errorf("port-forward to pod %s: %w", pod, err)
		}
		c, err := forward(conn, resource.PortGRPC)
		if err != nil {
			conn.Close()
			return nil, fmt.Errorf("port-forward to pod %s: %w", pod, err)
		}
		return c, nil
	}, nil
}

// withoutWebsockets reports whether the API server, or a proxy before it, knows no
// websockets. The error of the dialer is of one package, that of its transport of
// another.
func withoutWebsockets(err error) bool {
	return httpstream.IsUpgradeFailure(err) || streaming.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
}

// dialWithin ends the wait with ctx, of which the dialer knows nothing.
func dialWithin(ctx context.Context, dialer httpstream.Dialer) (httpstream.Connection, error) {
	type result struct {
		conn httpstream.Connection
		err  error
	}
	dialled := make(chan result, 1)
	go func() {
		conn, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
		dialled <- result{conn, err}
	}()
	select {
	case r := <-dialled:
		return r.conn, r.err
	case <-ctx.Done():
		go func() {
			if r := <-dialled; r.err == nil {
				r.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// forward makes a connection of the two streams that the protocol wants for one.
func forward(conn httpstream.Connection, port int) (net.Conn, error) {
	headers := http.Header{}
	headers.Set(corev1.PortHeader, strconv.Itoa(port))
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	failures, err := conn.CreateStream(headers)
	if err != nil {
		return nil, err
	}
	failures.Close() // it is only read
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := conn.CreateStream(headers)
	if err != nil {
		return nil, err
	}
	near, far := net.Pipe() // has the deadlines that a stream has not
	failed := make(chan error, 1)
	go func() {
		if message, err := io.ReadAll(failures); err == nil && len(message) > 0 {
			failed <- errors.New(string(message))
			far.Close()
		}
	}()
	go func() {
		_, _ = io.Copy(far, data)
		far.Close()
	}()
	go func() {
		_, _ = io.Copy(data, far)
		conn.Close()
	}()
	return &forwarded{Conn: near, failed: failed}, nil
}

// forwarded says why a forward ended, where the kubelet has said it.
type forwarded struct {
	net.Conn
	failed chan error
}

// Read implements net.Conn.
func (f *forwarded) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	if err != nil {
		select {
		case why := <-f.failed:
			return n, why
		default:
		}
	}
	return n, err
}
