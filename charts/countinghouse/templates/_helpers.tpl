{{- define "countinghouse.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "countinghouse.operator" -}}
{{- printf "%s-operator" (include "countinghouse.fullname" .) -}}
{{- end }}

{{- define "countinghouse.exchange" -}}
{{- printf "%s-exchange" (include "countinghouse.fullname" .) -}}
{{- end }}

{{/* Labels by which pods are selected. Storage nodes let in what has the first two. */}}
{{- define "countinghouse.operatorSelector" -}}
app.kubernetes.io/name: countinghouse
app.kubernetes.io/component: operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "countinghouse.exchangeSelector" -}}
app.kubernetes.io/name: countinghouse
app.kubernetes.io/component: exchange
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of every object. */}}
{{- define "countinghouse.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "countinghouse.operatorLabels" -}}
{{ include "countinghouse.operatorSelector" . }}
{{ include "countinghouse.labels" . }}
{{- end }}

{{- define "countinghouse.exchangeLabels" -}}
{{ include "countinghouse.exchangeSelector" . }}
{{ include "countinghouse.labels" . }}
{{- end }}

{{- define "countinghouse.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end }}

{{- define "countinghouse.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "countinghouse.operator" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: name the service account that serviceAccount.create=false leaves to you" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{/* What the restricted Pod Security standard asks of a pod. */}}
{{- define "countinghouse.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* And of a container. */}}
{{- define "countinghouse.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Rules of the generated role: those of leases, which the operator needs in its own
namespace only, or the others. */}}
{{- define "countinghouse.rules" -}}
{{- $rules := list -}}
{{- range (.context.Files.Get "files/role.yaml" | fromYaml).rules -}}
{{- if eq $.leases (has "coordination.k8s.io" .apiGroups) -}}
{{- $rules = append $rules . -}}
{{- end -}}
{{- end -}}
{{- toYaml $rules -}}
{{- end }}

{{/* The memory limit, which the Go runtime tries to stay within, in bytes. Mapped files count towards it as well, and are
the kernel's to take back. */}}
{{- define "countinghouse.goMemoryLimit" -}}
- name: GOMEMLIMIT
  valueFrom:
    resourceFieldRef: {resource: limits.memory}
{{- end }}
