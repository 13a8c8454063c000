{{/* Name of every object of this release: the release's name, with the chart's unless it is part of it. */}}
{{- define "mark.name" -}}
{{- $name := .Release.Name -}}
{{- if not (contains .Chart.Name $name) -}}{{- $name = printf "%s-%s" $name .Chart.Name -}}{{- end -}}
{{- $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* What selects the operator's Pods; never changes, because a Deployment's selector cannot. */}}
{{- define "mark.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "mark.labels" -}}
{{ include "mark.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: mark
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "mark.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "mark.name" .) -}}
{{- else -}}
{{- required "serviceAccount.name: needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "mark.leaseName" -}}
{{ include "mark.name" . }}
{{- end -}}

{{- define "mark.authoritySecretName" -}}
{{ include "mark.name" . }}-authority
{{- end -}}

{{/* What the operator reads at its start: the chosen settings, and those that follow from the chart's own objects. */}}
{{- define "mark.settings" -}}
{{- $filled := dict
  "operatorNamespace" .Release.Namespace
  "watchNamespaces" .Values.watchNamespaces
  "trainerImage" .Values.image.trainer
  "trainerImagePullPolicy" .Values.image.pullPolicy
  "dryRunPods" .Values.plan.dryRunPods
  "leaseName" (include "mark.leaseName" .)
  "authoritySecretName" (include "mark.authoritySecretName" .)
  "progressUrl" (printf "https://%s.%s.svc:8443" (include "mark.name" .) .Release.Namespace)
  "progressPort" 8443
  "healthPort" 8080
-}}
{{ merge $filled .Values.settings | toPrettyJson }}
{{- end -}}
