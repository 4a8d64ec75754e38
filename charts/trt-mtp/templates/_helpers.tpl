{{- define "trt-mtp.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "trt-mtp.selector" -}}
app.kubernetes.io/name: trt-mtp
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "trt-mtp.labels" -}}
{{ include "trt-mtp.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "trt-mtp.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ int64 .Values.podSecurity.runAsUser }}
runAsGroup: {{ int64 .Values.podSecurity.runAsGroup }}
fsGroup: {{ int64 .Values.podSecurity.fsGroup }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "trt-mtp.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "trt-mtp.spread" -}}
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "trt-mtp.selector" $ | nindent 6 }}
      {{- with $.variant }}
      trt-mtp/variant: {{ . }}
      {{- end }}
{{- end }}
{{- end }}

{{- define "trt-mtp.podCommon" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- /* a file of examples/envoy with the addresses and the model of this release, and TLS for clients */}}
{{- define "trt-mtp.envoy" -}}
{{- $pods := printf "%s-gateway-pods.%s.svc" (include "trt-mtp.name" .) .Release.Namespace }}
{{- $file := .Files.Get (.Values.envoy.picker | ternary "files/picker.yaml" "files/envoy.yaml") }}
{{- $file = $file | replace "address: gateways," (printf "address: %s," $pods) }}
{{- $config := $file | replace "/models/qwen_mtp/" (printf "/models/%s/" .Values.model) | fromYaml }}
{{- if .Values.envoy.tlsSecret }}
{{- range $config.static_resources.listeners }}
{{- $alpn := eq .name "grpc" | ternary (list "h2") (list "h2" "http/1.1") }}
{{- range .filter_chains }}
{{- $_ := set . "transport_socket" (include "trt-mtp.envoyTls" $alpn | fromYaml) }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{- define "trt-mtp.envoyTls" -}}
name: envoy.transport_sockets.tls
typed_config:
  "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
  common_tls_context:
    alpn_protocols: {{ toJson . }}
    tls_certificate_sds_secret_configs:
      - name: tls
        sds_config:
          # read again when the Secret changes
          path_config_source:
            path: /etc/trt-mtp/envoy/tls.yaml
            watched_directory: {path: /etc/trt-mtp/tls}
{{- end }}
