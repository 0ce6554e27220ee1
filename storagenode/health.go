package storagenode

import (
	"fmt"
	"net/http"

	"google.golang.org/grpc/health/grpc_health_v1"
)

// Health returns what answers a probe over HTTP as the health service answers for
// a service, "" or ReadyService: 200 where that is SERVING, 503 otherwise. It says
// nothing that a certificate would have to protect.
func (s *Server) Health(service string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, err := s.health.Check(r.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
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
