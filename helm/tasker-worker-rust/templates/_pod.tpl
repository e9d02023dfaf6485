{{/* Variables of every program. Takes a dict of root, and optionally settings and extraEnv of a pool, topology, and
passwordKey where the mounted secret is not the workers'. */}}
{{- define "tasker.env" -}}
{{- $root := .root -}}
{{- $passwordKey := hasKey . "passwordKey" | ternary .passwordKey $root.Values.rabbitmq.passwordKey -}}
- name: TASKER_ENV
  value: {{ $root.Values.environment | quote }}
- name: ORCHESTRATION_API_URL
  value: {{ include "tasker.apiUrl" $root | quote }}
- name: DATABASE_URL
{{- if $root.Values.database.existingSecret }}
  valueFrom:
    secretKeyRef:
      name: {{ $root.Values.database.existingSecret }}
      key: {{ $root.Values.database.urlKey }}
{{- else }}
  value: {{ $root.Values.database.url | quote }}
{{- end }}
{{- if eq $root.Values.rabbitmq.mode "operator" }}
{{- range $variable, $key := dict "RABBITMQ_USERNAME" "username" "RABBITMQ_HOST" "host" "RABBITMQ_PORT" "port" }}
- name: {{ $variable }}
  valueFrom:
    secretKeyRef:
      name: {{ include "tasker.brokerSecret" $root }}
      key: {{ $key }}
{{- end }}
- name: RABBITMQ_URL
  value: {{ dig "tls" "secretName" "" $root.Values.rabbitmq.operator.spec | empty | ternary "amqp" "amqps" }}://$(RABBITMQ_USERNAME)@$(RABBITMQ_HOST):$(RABBITMQ_PORT)/%2f
- name: TASKER__BROKER__PASSWORD_FILE
  value: /run/secrets/rabbitmq/password
{{- else }}
- name: RABBITMQ_URL_FILE
  value: /run/secrets/rabbitmq/url
{{- if and (eq $root.Values.rabbitmq.mode "external") $passwordKey }}
- name: TASKER__BROKER__PASSWORD_FILE
  value: /run/secrets/rabbitmq/password
{{- end }}
{{- end }}
{{- with $root.Values.rabbitmq.tls }}
{{- $files := dict "TASKER__BROKER__TLS__CA_FILE" .caKey "TASKER__BROKER__TLS__CERTIFICATE_FILE" .certificateKey "TASKER__BROKER__TLS__KEY_FILE" .privateKeyKey }}
{{- range $variable, $key := .existingSecret | empty | ternary dict $files }}
{{- if $key }}
- name: {{ $variable }}
  value: /run/secrets/rabbitmq-tls/{{ $key }}
{{- end }}
{{- end }}
{{- with .serverName }}
- name: TASKER__BROKER__TLS__SERVER_NAME
  value: {{ . | quote }}
{{- end }}
{{- if .externalLogin }}
- name: TASKER__BROKER__TLS__EXTERNAL_LOGIN
  value: "true"
{{- end }}
{{- end }}
- name: TASKER__BROKER__PREFIX
  value: {{ $root.Values.rabbitmq.prefix | quote }}
- name: TASKER__BROKER__TOPOLOGY
  value: {{ .topology | default (ternary "verify" "declare" (eq "yes" (include "tasker.usesTopologyJob" $root))) }}
{{- range $key, $value := mergeOverwrite (dict) $root.Values.settings (default dict .settings) }}
- name: TASKER__{{ $key | replace "." "__" | upper }}
  {{- /* YAML's numbers arrive as floats, and a million as 1e+06. */}}
  value: {{ and (kindIs "float64" $value) (eq $value (floor $value)) | ternary ($value | toJson | int64 | toString) ($value | toString) | quote }}
{{- end }}
{{- with concat $root.Values.extraEnv (default list .extraEnv) }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Takes a dict of root, secret with its urlKey and passwordKey, and tlsSecret where it is not the workers'. */}}
{{- define "tasker.brokerVolume" -}}
- name: rabbitmq
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
    items:
{{- if eq .root.Values.rabbitmq.mode "operator" }}
      - { key: password, path: password }
{{- else }}
      - { key: {{ .urlKey | quote }}, path: url }
{{- if and (eq .root.Values.rabbitmq.mode "external") .passwordKey }}
      - { key: {{ .passwordKey | quote }}, path: password }
{{- end }}
{{- end }}
{{- with .root.Values.rabbitmq.tls }}
{{- if .existingSecret }}
- name: rabbitmq-tls
  secret:
    secretName: {{ default .existingSecret $.tlsSecret }}
    defaultMode: 0440
    items:
    {{- range compact (list .caKey .certificateKey .privateKeyKey) }}
      - { key: {{ . | quote }}, path: {{ . | quote }} }
    {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "tasker.templatesVolume" -}}
{{- with .Values.templatesConfigMap }}
- name: templates
  configMap:
    name: {{ . }}
{{- end }}
{{- end -}}

{{- define "tasker.mounts" -}}
- { name: rabbitmq, mountPath: /run/secrets/rabbitmq, readOnly: true }
{{- if .Values.rabbitmq.tls.existingSecret }}
- { name: rabbitmq-tls, mountPath: /run/secrets/rabbitmq-tls, readOnly: true }
{{- end }}
{{- if .Values.templatesConfigMap }}
- { name: templates, mountPath: /app/config/workflows, readOnly: true }
{{- end }}
{{- end -}}

{{/* What all pods have: accounts, contexts, pull secrets. */}}
{{- define "tasker.pod" -}}
serviceAccountName: {{ include "tasker.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "tasker.container" -}}
image: {{ include "tasker.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- end -}}

{{- define "tasker.checksums" -}}
checksum/broker: {{ include (print $.Template.BasePath "/secret.yaml") . | sha256sum }}
{{- end -}}
