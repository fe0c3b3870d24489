{{/* The chart's name, as labels carry it. */}}
{{- define "finetuning.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The prefix of every object's name: the release, unless it names the chart already. 52 leaves room for our suffixes. */}}
{{- define "finetuning.fullname" -}}
{{- $name := include "finetuning.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "finetuning.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "finetuning.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: name an existing ServiceAccount where serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* What selects the operator's pods. The name is fixed: the policies of training pods let them reach it by that. */}}
{{- define "finetuning.selector" -}}
app.kubernetes.io/name: finetuning-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "finetuning.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{ include "finetuning.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* An image: (dict "root" $ "repository" ... "reference" ...). A full reference goes first. */}}
{{- define "finetuning.image" -}}
{{- $image := .root.Values.image -}}
{{- if .reference -}}
{{- .reference -}}
{{- else -}}
{{- with $image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ .repository }}:{{ default .root.Chart.AppVersion $image.tag -}}
{{- end -}}
{{- end -}}

{{- define "finetuning.progressName" -}}
{{ include "finetuning.fullname" . }}-progress
{{- end -}}

{{- define "finetuning.progressHost" -}}
{{ include "finetuning.progressName" . }}.{{ .Release.Namespace }}.svc
{{- end -}}

{{- define "finetuning.progressSecret" -}}
{{- if eq .Values.progress.certificate "existingSecret" -}}
{{- required "progress.existingSecret: name the Secret with tls.crt, tls.key and ca.crt" .Values.progress.existingSecret -}}
{{- else -}}
{{- include "finetuning.progressName" . -}}
{{- end -}}
{{- end -}}

{{/* The rules of the operator that concern one namespace, all but who reports and who leads, as YAML. */}}
{{- define "finetuning.workRules" -}}
{{- $rules := list -}}
{{- range .Files.Get "files/operator-rules.yaml" | fromYamlArray -}}
{{- if not (has (first .apiGroups) (list "coordination.k8s.io" "authentication.k8s.io")) -}}
{{- $rules = append $rules . -}}
{{- end -}}
{{- end -}}
{{- toYaml $rules -}}
{{- end -}}

{{/* The rules of one API group: (dict "root" $ "group" ...). */}}
{{- define "finetuning.rulesOf" -}}
{{- $group := .group -}}
{{- $rules := list -}}
{{- range .root.Files.Get "files/operator-rules.yaml" | fromYamlArray -}}
{{- if eq (first .apiGroups) $group -}}
{{- $rules = append $rules . -}}
{{- end -}}
{{- end -}}
{{- toYaml $rules -}}
{{- end -}}
