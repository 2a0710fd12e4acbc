{{- define "penstock.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What tells the Pods of one component of one release: never changes, since selectors cannot. (dict "root" $ "component" "router") */}}
{{- define "penstock.selector" -}}
app.kubernetes.io/name: penstock
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "penstock.labels" -}}
{{ include "penstock.selector" . }}
app.kubernetes.io/part-of: penstock
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Pods: not the version, which would be a second reason for a rollout beside the image. */}}
{{- define "penstock.podLabels" -}}
{{ include "penstock.selector" . }}
app.kubernetes.io/part-of: penstock
{{- with .values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "penstock.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "penstock.secretName" -}}
{{- .Values.secrets.existing | default (printf "%s-secrets" (include "penstock.fullname" .)) -}}
{{- end -}}

{{/* "own" (a URL of the user's), "existing" (a Secret of the user's) or "bundled". */}}
{{- define "penstock.redisKind" -}}
{{- if and .Values.redis.url .Values.redis.existing.name -}}
{{- fail "redis.url and redis.existing.name are both set; allowed: one of them" -}}
{{- else if .Values.redis.url -}}own
{{- else if .Values.redis.existing.name -}}existing
{{- else if .Values.redis.bundled.enabled -}}bundled
{{- else -}}
{{- fail "redis.bundled.enabled is false and no other Redis is named; allowed: redis.url, redis.existing.name, or the bundled one" -}}
{{- end -}}
{{- end -}}

{{/* Environment of the processes that speak to workers and to Redis. */}}
{{- define "penstock.secretEnv" -}}
{{- $secret := include "penstock.secretName" . -}}
- {name: PENSTOCK_FLEET_TOKEN, valueFrom: {secretKeyRef: {name: {{ $secret }}, key: fleet-token}}}
- {name: PENSTOCK_CHUNK_SECRET, valueFrom: {secretKeyRef: {name: {{ $secret }}, key: chunk-secret}}}
{{ include "penstock.redisEnv" . }}
{{- end -}}

{{/* Of the process that speaks to Redis only. */}}
{{- define "penstock.redisEnv" -}}
{{- $secret := include "penstock.secretName" . -}}
{{- $redis := include "penstock.redisKind" . -}}
{{- if eq $redis "bundled" -}}
- {name: REDIS_PASSWORD, valueFrom: {secretKeyRef: {name: {{ $secret }}, key: redis-password}}}
- {name: PENSTOCK_REDIS_URL, value: "redis://:$(REDIS_PASSWORD)@{{ include "penstock.fullname" . }}-redis.{{ .Release.Namespace }}.svc:6379/0"}
{{- else if eq $redis "own" -}}
- {name: PENSTOCK_REDIS_URL, valueFrom: {secretKeyRef: {name: {{ include "penstock.fullname" . }}-redis-url, key: redis-url}}}
{{- else -}}
- {name: PENSTOCK_REDIS_URL, valueFrom: {secretKeyRef: {name: {{ .Values.redis.existing.name }}, key: {{ .Values.redis.existing.key }}}}}
{{- end }}
{{- end -}}

{{/* Fields of every Pod's spec: (dict "root" $ "values" .Values.router "component" "router"). */}}
{{- define "penstock.podSpec" -}}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "penstock.selector" . | nindent 8 }}
{{- end -}}

{{- define "penstock.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
