package resource

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	v1 "github.com/countinghouse/countinghouse/api/v1"
)

// Defaults are what the operator fills in where a shard's spec is silent.
type Defaults struct {
	Image string // of the storage node
}

// Formation says how a member begins.
type Formation struct {
	// Peers are the members that form the shard; empty for a member that joins one
	// that is there already.
	Peers []string
	// Recover is the token of a recovery from a lost quorum in which the member is the
	// survivor; empty for none.
	Recover string
}

// Claim returns a member's volume claim. It has no owner: what becomes of it is
// the retention policy's to say, not the garbage collector's.
func Claim(s *v1.InstrumentShard, member string) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
		ObjectMeta: meta(s, member),
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: s.Spec.Storage.Size}},
		},
	}
	c.Labels[LabelMember] = member
	if s.Spec.Storage.ClassName != "" {
		c.Spec.StorageClassName = &s.Spec.Storage.ClassName
	}
	return c
}

// Pod returns a member's pod. Its hash covers what the spec asks for and neither
// how the member began nor what the operator's own defaults are, so that an
// upgrade of the operator restarts nothing.
func Pod(s *v1.InstrumentShard, member string, f Formation, d Defaults) (*corev1.Pod, error) {
	hash, err := SpecHash(s)
	if err != nil {
		return nil, err
	}
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: owned(s, meta(s, member)),
		Spec:       podSpec(s, member, f, d),
	}
	p.Labels[LabelMember] = member
	p.Annotations = map[string]string{AnnotationSpecHash: hash}
	if f.Recover != "" {
		p.Annotations[AnnotationRecovery] = f.Recover
	}
	return p, nil
}

// SpecHash returns the hash of that part of a shard's spec that its pods are made of.
func SpecHash(s *v1.InstrumentShard) (string, error) {
	spec := &s.Spec
	b, err := json.Marshal([]any{
		spec.Image, spec.ImagePullPolicy, spec.ImagePullSecrets, spec.Limits, spec.Timing, spec.Resources, spec.Scheduling,
		NodeSecret(s),
	})
	if err != nil {
		return "", fmt.Errorf("spec of shard %s: %w", s.Name, err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8]), nil
}

func podSpec(s *v1.InstrumentShard, member string, f Formation, d Defaults) corev1.PodSpec {
	sched := &s.Spec.Scheduling
	return corev1.PodSpec{
		Hostname:                      member,
		Subdomain:                     PeersService(s.Name),
		RestartPolicy:                 corev1.RestartPolicyAlways,
		TerminationGracePeriodSeconds: ptr[int64](stopGrace + 10),
		AutomountServiceAccountToken:  ptr(false),
		EnableServiceLinks:            ptr(false),
		ImagePullSecrets:              s.Spec.ImagePullSecrets,
		PriorityClassName:             sched.PriorityClassName,
		NodeSelector:                  sched.NodeSelector,
		Affinity:                      sched.Affinity,
		Tolerations:                   sched.Tolerations,
		TopologySpreadConstraints:     spread(s),
		SecurityContext: &corev1.PodSecurityContext{
			RunAsNonRoot: ptr(true), RunAsUser: ptr[int64](userID), RunAsGroup: ptr[int64](userID), FSGroup: ptr[int64](userID),
			// A volume with many tables is not walked through at each start.
			FSGroupChangePolicy: ptr(corev1.FSGroupChangeOnRootMismatch),
			SeccompProfile:      &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Containers: []corev1.Container{container(s, member, f, d)},
		Volumes:    volumes(s, member),
	}
}

func volumes(s *v1.InstrumentShard, member string) []corev1.Volume {
	out := []corev1.Volume{{
		Name:         "data",
		VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: member}},
	}}
	if name := NodeSecret(s); name != "" {
		out = append(out, corev1.Volume{
			Name: "tls",
			VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
				// The group is the pod's; a member waits until the secret is there.
				SecretName: name, DefaultMode: ptr[int32](0o440), Optional: ptr(false),
			}},
		})
	}
	return out
}

func mounts(s *v1.InstrumentShard) []corev1.VolumeMount {
	out := []corev1.VolumeMount{{Name: "data", MountPath: dataMount}}
	if NodeSecret(s) != "" {
		out = append(out, corev1.VolumeMount{Name: "tls", MountPath: tlsMount, ReadOnly: true})
	}
	return out
}

// spread puts members on different nodes as far as there are any, and fills zones
// evenly.
func spread(s *v1.InstrumentShard) []corev1.TopologySpreadConstraint {
	if own := s.Spec.Scheduling.TopologySpreadConstraints; len(own) > 0 {
		return own
	}
	rule := func(key string, when corev1.UnsatisfiableConstraintAction) corev1.TopologySpreadConstraint {
		return corev1.TopologySpreadConstraint{
			MaxSkew: 1, TopologyKey: key, WhenUnsatisfiable: when,
			NodeTaintsPolicy: ptr(corev1.NodeInclusionPolicyHonor),
			LabelSelector: &metav1.LabelSelector{
				MatchLabels:      ShardLabels(s.Name),
				MatchExpressions: []metav1.LabelSelectorRequirement{{Key: LabelLeaving, Operator: metav1.LabelSelectorOpDoesNotExist}},
			},
		}
	}
	return []corev1.TopologySpreadConstraint{
		rule(corev1.LabelHostname, corev1.DoNotSchedule), rule(corev1.LabelTopologyZone, corev1.ScheduleAnyway),
	}
}

func container(s *v1.InstrumentShard, member string, f Formation, d Defaults) corev1.Container {
	image := s.Spec.Image
	if image == "" {
		image = d.Image
	}
	return corev1.Container{
		Name: "storagenode", Image: image, ImagePullPolicy: s.Spec.ImagePullPolicy,
		Command: []string{"/storagenode"}, Args: args(s, member, f), Env: environment(s), Resources: s.Spec.Resources,
		Ports: []corev1.ContainerPort{
			{Name: "grpc", ContainerPort: PortGRPC, Protocol: corev1.ProtocolTCP},
			{Name: "metrics", ContainerPort: PortMetrics, Protocol: corev1.ProtocolTCP},
		},
		VolumeMounts: mounts(s),
		// A start reads the log: it may take minutes, and is not to be interrupted.
		StartupProbe: probe("/healthz", 5, 360),
		// Serving at all is what a restart could help with; a member without a leader
		// is not ready, and is left alone.
		LivenessProbe:  probe("/healthz", 10, 6),
		ReadinessProbe: probe("/readyz", 5, 2),
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: ptr(false), ReadOnlyRootFilesystem: ptr(true), Privileged: ptr(false),
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
	}
}

// probe asks over HTTP on the port of the metrics: the kubelet has no certificate
// to show on the other one.
func probe(path string, period, failures int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(PortMetrics), Scheme: corev1.URISchemeHTTP}},
		PeriodSeconds: period, TimeoutSeconds: 5, FailureThreshold: failures, SuccessThreshold: 1,
	}
}

func args(s *v1.InstrumentShard, member string, f Formation) []string {
	l, timing := &s.Spec.Limits, &s.Spec.Timing
	out := []string{
		"--cluster=" + s.Spec.Cluster,
		"--shard=" + s.Name,
		"--id=" + member,
		fmt.Sprintf("--listen=:%d", PortGRPC),
		"--advertise=" + Address(s, member),
		fmt.Sprintf("--metrics-listen=:%d", PortMetrics),
		"--data-dir=" + dataDir,
		"--log-format=json",
		fmt.Sprintf("--stop-grace=%ds", stopGrace),
		"--heartbeat-timeout=" + timing.HeartbeatTimeout.Duration.String(),
		fmt.Sprintf("--memtable-bytes=%d", l.MemtableBytes),
		fmt.Sprintf("--segment-bytes=%d", l.SegmentBytes),
		fmt.Sprintf("--log-cache-bytes=%d", l.LogCacheBytes),
		fmt.Sprintf("--in-flight-bytes=%d", l.InFlightBytes),
		fmt.Sprintf("--append-window=%d", l.AppendWindow),
		fmt.Sprintf("--queries-max=%d", l.Queries),
		fmt.Sprintf("--disk-reserve-bytes=%d", l.DiskReserveBytes),
		fmt.Sprintf("--snapshot-send-bytes-per-second=%d", l.SnapshotSendBytesPerSecond),
	}
	if f.Recover != "" {
		out = append(out, "--recover="+f.Recover)
	}
	if NodeSecret(s) != "" {
		out = append(out, "--tls-dir="+tlsMount)
	}
	if len(f.Peers) == 0 {
		return append(out, "--join")
	}
	var peers []string
	for _, p := range f.Peers {
		peers = append(peers, p+"="+Address(s, p))
	}
	return append(out, "--peers="+strings.Join(peers, ","))
}

// memoryShare is the part of the memory limit, in percent, that the Go runtime
// tries to stay within; mapped tables and gRPC's buffers take the rest.
const memoryShare = 85

// environment tells the Go runtime of the memory limit. GOMAXPROCS it derives
// from the CPU limit by itself; a node adds to that.
func environment(s *v1.InstrumentShard) []corev1.EnvVar {
	limit, ok := s.Spec.Resources.Limits[corev1.ResourceMemory]
	if !ok || limit.Value() <= 0 {
		return nil
	}
	return []corev1.EnvVar{{Name: "GOMEMLIMIT", Value: fmt.Sprintf("%dB", limit.Value()/100*memoryShare)}}
}

// ClaimGrows reports whether a claim asks for less than the shard's spec.
func ClaimGrows(s *v1.InstrumentShard, c *corev1.PersistentVolumeClaim) bool {
	asks := c.Spec.Resources.Requests[corev1.ResourceStorage]
	return asks.Cmp(s.Spec.Storage.Size) < 0
}

// Quorum returns how many of a number of voters are a majority.
func Quorum(voters int32) int32 { return voters/2 + 1 }

func ptr[T any](v T) *T { return &v }

func port(n int32) *intstr.IntOrString { return ptr(intstr.FromInt32(n)) }
