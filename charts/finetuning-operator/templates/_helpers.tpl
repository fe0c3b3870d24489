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

{{/* What Pod Security `restricted` asks for, with what the values put over it; a null takes a field out. */}}
{{- define "finetuning.podSecurity" -}}
{{- $standard := dict "runAsNonRoot" true "runAsUser" 65532 "runAsGroup" 65532 "fsGroup" 65532 -}}
{{- $_ := set $standard "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- include "finetuning.over" (dict "standard" $standard "own" .Values.podSecurityContext) -}}
{{- end -}}

{{- define "finetuning.containerSecurity" -}}
{{- $standard := dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true -}}
{{- $_ := set $standard "capabilities" (dict "drop" (list "ALL")) -}}
{{- include "finetuning.over" (dict "standard" $standard "own" .Values.securityContext) -}}
{{- end -}}

{{/* Standard fields with a user's own over them: (dict "standard" ... "own" ...). */}}
{{- define "finetuning.over" -}}
{{- $merged := deepCopy .standard -}}
{{- range $name, $value := .own -}}
{{- if kindIs "invalid" $value -}}
{{- $_ := unset $merged $name -}}
{{- else -}}
{{- $_ := set $merged $name $value -}}
{{- end -}}
{{- end -}}
{{- toYaml $merged -}}
{{- end -}}

{{/* An image: (dict "root" $ "repository" ... "reference" ...). A full reference goes first. */}}
{{- define "finetuning.image" -}}
{{- $image := .root.Values.image -}}
{{- if .reference -}}
{{- .reference -}}
{{- else -}}
{{- with $image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ .repository }}:{{ default .root.Chart.AppVersion $image.tag -}}
{{- with .digest }}@{{ . }}{{ end -}}
{{- end -}}
{{- end -}}

{{- define "finetuning.operatorImage" -}}
{{- $image := .Values.image -}}
{{- include "finetuning.image" (dict "root" . "repository" $image.repository "digest" $image.digest) -}}
{{- end -}}

{{- define "finetuning.priorityClass" -}}
{{- default (include "finetuning.fullname" .) .Values.priorityClass.name -}}
{{- end -}}

{{/* The PriorityClass of generated pods that name none: one that is named, else the chart's own, else none. */}}
{{- define "finetuning.workloadPriorityClass" -}}
{{- if or .Values.workloads.priorityClassName (not .Values.priorityClass.create) -}}
{{- .Values.workloads.priorityClassName -}}
{{- else -}}
{{- include "finetuning.priorityClass" . -}}
{{- end -}}
{{- end -}}

{{/* What an administrator allows and offers, as the operator reads it. */}}
{{- define "finetuning.policy" -}}
{{- $bounds := dict "resources" .Values.bounds.resources "presetRequired" .Values.bounds.presetRequired "metricCode" .Values.bounds.metricCode -}}
{{- if not (kindIs "invalid" .Values.bounds.serverReplicas) -}}
{{- $_ := set $bounds "serverReplicas" (int64 .Values.bounds.serverReplicas) -}}
{{- end -}}
{{- $relocation := omit .Values.relocation "egress" -}}
{{- dict "presets" .Values.presets "bounds" $bounds "relocation" $relocation "egress" .Values.relocation.egress | toYaml -}}
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

{{/* The rules of the operator that concern one namespace, all but who reports and who leads, as YAML. What answers for servers is written only where a port is there for it. */}}
{{- define "finetuning.workRules" -}}
{{- $rules := list -}}
{{- range .Files.Get "files/operator-rules.yaml" | fromYamlArray -}}
{{- $apart := has (first .apiGroups) (list "coordination.k8s.io" "authentication.k8s.io") -}}
{{- $doorway := and (eq (first .apiGroups) "discovery.k8s.io") (has "create" .verbs) -}}
{{- if not (or $apart (and $doorway (not $.Values.serving.wakePort))) -}}
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
