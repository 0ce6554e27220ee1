package server

import (
	"fmt"
	"net/http"

	"google.golang.org/grpc/health/grpc_health_v1"
)

// Alive answers probes over HTTP: 200 for as long as the process answers at all,
// also while it recovers.
func (s *Server) Alive() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ALIVE") })
}

// Ready answers probes over HTTP as the health service does for "": 200 while the
// exchange takes orders, 503 before and after.
func (s *Server) Ready() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, err := s.health.Check(r.Context(), &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		if answer.Status != grpc_health_v1.HealthCheckResponse_SERVING {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintln(w, answer.Status)
	})
}
