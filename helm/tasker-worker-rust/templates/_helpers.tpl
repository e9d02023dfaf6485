{{/* At most 40 characters: with a pool's name and KEDA's prefix it must stay below 63. */}}
{{- define "tasker.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "tasker.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tasker.labels" -}}
{{ include "tasker.selector" . }}
app.kubernetes.io/version: {{ default .Chart.AppVersion .Values.image.tag | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- end -}}

{{- define "tasker.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "tasker.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "tasker.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{/* The pools as they are: JSON of name -> values, laid over the defaults. */}}
{{- define "tasker.pools" -}}
{{- $pools := dict -}}
{{- range $name, $pool := .Values.workers.pools -}}
{{- $merged := mergeOverwrite (deepCopy $.Values.workers.defaults) (deepCopy (default dict $pool)) -}}
{{- if $merged.enabled -}}
{{- $_ := set $pools $name $merged -}}
{{- end -}}
{{- end -}}
{{- toJson $pools -}}
{{- end -}}

{{- define "tasker.apiUrl" -}}
{{- if .Values.orchestrationApiUrl -}}
{{ .Values.orchestrationApiUrl }}
{{- else if .Values.orchestrator.enabled -}}
http://{{ include "tasker.fullname" . }}-orchestrator:8080
{{- else -}}
http://tasker-orchestration:8080
{{- end -}}
{{- end -}}

{{/* The secret with the broker's address, and whether this release makes it. */}}
{{- define "tasker.brokerSecret" -}}
{{- if eq .Values.rabbitmq.mode "operator" -}}
{{ include "tasker.fullname" . }}-rabbitmq-default-user
{{- else if and (eq .Values.rabbitmq.mode "external") .Values.rabbitmq.existingSecret -}}
{{ .Values.rabbitmq.existingSecret }}
{{- else -}}
{{ include "tasker.fullname" . }}-broker
{{- end -}}
{{- end -}}

{{- define "tasker.brokerUrl" -}}
{{- if eq .Values.rabbitmq.mode "dev" -}}
amqp://tasker:{{ .Values.rabbitmq.dev.password | urlquery }}@{{ include "tasker.fullname" . }}-rabbitmq:5672/%2f
{{- else -}}
{{ .Values.rabbitmq.url }}
{{- end -}}
{{- end -}}

{{- define "tasker.usesTopologyJob" -}}
{{- if and .Values.topology.job (eq .Values.rabbitmq.mode "external") }}yes{{ end -}}
{{- end -}}
