package storagenode

import "google.golang.org/grpc"

// Services returns the methods that the server serves.
func (s *Server) Services() map[string]grpc.ServiceInfo { return s.grpc.GetServiceInfo() }
