{{/* Labels of everything. One agent serves a node, so names are fixed: a second release would fight over the node. */}}
{{- define "larder.labels" -}}
app.kubernetes.io/name: larder
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end }}

{{- define "larder.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* What the preset says of the node, with what the values say before it, as JSON. */}}
{{- define "larder.node" -}}
{{- $file := printf "presets/%s.yaml" .Values.preset -}}
{{- $node := .Files.Get $file | required (printf "there is no preset %q" .Values.preset) | fromYaml -}}
{{- range $key := list "root" "socket" "hostsDir" "config" -}}
{{- with index $.Values.containerd $key }}{{ $_ := set $node $key . }}{{ end -}}
{{- end -}}
{{- if not (kindIs "invalid" .Values.host.certificates) }}{{ $_ := set $node "certificates" .Values.host.certificates }}{{ end -}}
{{- if not (kindIs "invalid" .Values.resourceQuota) }}{{ $_ := set $node "resourceQuota" .Values.resourceQuota }}{{ end -}}
{{- $node | toJson -}}
{{- end }}

{{/* The address of the cluster's DNS server, or nothing. */}}
{{- define "larder.dnsServer" -}}
{{- if .Values.peers.dnsServer -}}
{{ .Values.peers.dnsServer }}
{{- else -}}
{{- $found := "" -}}
{{- range (lookup "v1" "Service" "kube-system" "").items -}}
{{- if eq (dig "k8s-app" "" (.metadata.labels | default dict)) "kube-dns" -}}
{{- if and (not $found) (ne (.spec.clusterIP | default "None") "None") }}{{ $found = .spec.clusterIP }}{{ end -}}
{{- end -}}
{{- end -}}
{{ $found }}
{{- end -}}
{{- end }}

{{/* The port on which the agent listens for peers, or for Prometheus: by the section of its configuration. */}}
{{- define "larder.port" -}}
{{- $default := get (dict "peers" "7441" "metrics" "7442") .section -}}
{{- dig .section "listen" "" .config | regexFind "[0-9]+$" | default $default -}}
{{- end }}
{{- define "larder.port.peers" }}{{ include "larder.port" (dict "section" "peers" "config" .Values.config) }}{{ end }}
{{- define "larder.port.metrics" }}{{ include "larder.port" (dict "section" "metrics" "config" .Values.config) }}{{ end }}

{{/* The configuration: what the chart knows, with the values' before it, as JSON. */}}
{{- define "larder.config" -}}
{{- $node := include "larder.node" . | fromJson -}}
{{- $containerd := dict "socket" $node.socket "hosts_dir" $node.hostsDir "config" $node.config -}}
{{- $config := dict "cache" (dict "dir" (printf "%s/larder" $node.root)) "containerd" $containerd -}}
{{- if .Values.peers.enabled -}}
{{- $host := printf "larder-peers.%s.svc.%s" .Release.Namespace .Values.peers.clusterDomain -}}
{{- $name := printf "dns:%s:%s" $host (include "larder.port.peers" .) -}}
{{- $_ := set $config "peers" (dict "ca" "/etc/larder-peers/ca.pem" "key" "/etc/larder-peers/ca.key" "seeds" (list $name)) -}}
{{- end -}}
{{- mustMergeOverwrite $config (deepCopy .Values.config) | toJson -}}
{{- end }}

{{/* A table as TOML: first what has a value, then the tables in it. JSON's strings, numbers and lists are TOML's too. */}}
{{- define "larder.toml" -}}
{{- $at := .at -}}
{{- range $key, $value := .table -}}
{{- if not (or (kindIs "map" $value) (and (kindIs "slice" $value) $value (kindIs "map" (first $value)))) }}
{{ include "larder.toml.key" $key }} = {{ $value | toJson }}
{{- end -}}
{{- end -}}
{{- range $key, $value := .table -}}
{{- $path := append $at (include "larder.toml.key" $key) -}}
{{- if kindIs "map" $value }}

[{{ join "." $path }}]
{{- include "larder.toml" (dict "at" $path "table" $value) -}}
{{- else if and (kindIs "slice" $value) $value (kindIs "map" (first $value)) -}}
{{- range $value }}

[[{{ join "." $path }}]]
{{- include "larder.toml" (dict "at" $path "table" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "larder.toml.key" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end }}

{{- define "larder.toml.file" -}}
# From the chart's values. What is left out has its default: `larder config default` prints every key.
{{- include "larder.toml" (dict "at" list "table" (include "larder.config" . | fromJson)) }}
{{ end }}

{{/* On which nodes the agent is, and what cleans up after it, and before whose Pods. */}}
{{- define "larder.placement" -}}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
# Every node that pulls images, also one that isn't ready yet: what makes it ready comes through Larder.
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What admits Pods of that priority to the namespace. */}}
{{- define "larder.resourceQuota.spec" -}}
hard:
  pods: 1G
scopeSelector:
  matchExpressions:
    - scopeName: PriorityClass
      operator: In
      values: [{{ .Values.priorityClassName }}]
{{- end }}

{{/* The container's rights. */}}
{{- define "larder.securityContext" -}}
# containerd's folders and its socket are for root's eyes.
runAsUser: 0
runAsGroup: 0
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
# None is needed. What the agent reads, links and writes belongs to root, as it does itself: neither DAC_OVERRIDE
# (folders of mode 0700), nor FOWNER (links to others' files), nor CHOWN comes in.
capabilities:
  drop: [ALL]
  {{- with .Values.security.capabilities }}
  add: {{ toJson . }}
  {{- end }}
{{- if .Values.security.selinux.enabled }}
# SELinux keeps containers away from files that aren't labelled as theirs.
seLinuxOptions:
  type: {{ .Values.security.selinux.type }}
{{- end }}
{{- with .Values.security.appArmorProfile }}
appArmorProfile:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What the agent has of the host: the mounts … */}}
{{- define "larder.volumeMounts" -}}
{{- $node := include "larder.node" . | fromJson -}}
- name: containerd-root
  mountPath: {{ $node.root }}
  mountPropagation: {{ .Values.containerd.mountPropagation }}
- name: containerd-run
  mountPath: {{ dir $node.socket }}
  readOnly: true
  mountPropagation: {{ .Values.containerd.mountPropagation }}
- name: containerd-etc
  mountPath: {{ dir $node.config }}
  readOnly: true
- name: containerd-hosts
  mountPath: {{ $node.hostsDir }}
{{- range concat $node.certificates .Values.host.paths }}
- name: {{ include "larder.volumeName" .path }}
  mountPath: {{ .path }}
  readOnly: true
{{- end }}
- name: run
  mountPath: /run/larder
- name: config
  mountPath: /etc/larder
  readOnly: true
{{- end }}

{{/* … and the volumes. */}}
{{- define "larder.volumes" -}}
{{- $node := include "larder.node" . | fromJson -}}
# containerd's root: its blobs get a second name in the cache's folder beside them, and a link needs both in one mount.
# What is mounted and unmounted below it by the host comes and goes here too (HostToContainer): a copy of its own would
# keep it busy for as long as the agent runs.
- name: containerd-root
  hostPath:
    path: {{ $node.root }}
    type: Directory
# The folder of containerd's socket. The folder, not the socket: containerd makes a new one whenever it starts, and a
# mounted file would go on being the old one. The containers' root filesystems are mounted below it, which is why these
# too have to go when they go on the host.
- name: containerd-run
  hostPath:
    path: {{ dir $node.socket }}
    type: Directory
# containerd's configuration, for `larder doctor` to read.
- name: containerd-etc
  hostPath:
    path: {{ dir $node.config }}
    type: Directory
# The hosts folder: hosts.toml is written here.
- name: containerd-hosts
  hostPath:
    path: {{ $node.hostsDir }}
    type: DirectoryOrCreate
# The authorities that the host trusts, as containerd does; the image brings a set for where there is none.
{{- range $node.certificates }}
- name: {{ include "larder.volumeName" .path }}
  hostPath:
    path: {{ .path }}
    type: {{ .type }}
{{- end }}
{{- range .Values.host.paths }}
- name: {{ include "larder.volumeName" .path }}
  hostPath:
    path: {{ .path }}
    type: {{ .type }}
{{- end }}
# The socket of `larder status` and its like.
- name: run
  emptyDir:
    sizeLimit: 1Mi
{{- end }}

{{- define "larder.volumeName" -}}
{{- . | trimAll "/" | lower | replace "/" "-" | replace "." "-" | replace "_" "-" | trunc 63 | trimAll "-" -}}
{{- end }}

{{/* Of what cleans up: made after everything else is gone, and gone itself when it is done. */}}
{{- define "larder.cleanup.metadata" -}}
namespace: {{ .context.Release.Namespace }}
labels:
  {{- include "larder.labels" .context | nindent 2 }}
  app.kubernetes.io/component: clean-up
annotations:
  helm.sh/hook: post-delete
  helm.sh/hook-weight: {{ .weight | quote }}
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
{{- end }}
