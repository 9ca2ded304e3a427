{{/* Labels that select the agent's pods. They never change: a DaemonSet's selector cannot. */}}
{{- define "lbxdp.selector" -}}
app.kubernetes.io/name: lbxdp
app.kubernetes.io/component: agent
{{- end }}

{{- define "lbxdp.labels" -}}
{{ include "lbxdp.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "lbxdp.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/*
Memory, in MiB. Map memory is charged to the pod that makes the maps, all of it when they are made, but
for the source ranges. A test compares these with the maps' capacities.

  maps     maps that have one copy
  cpu      statistics, for each possible CPU
  process  the agent itself with 10,000 Services, the programs, and the kernel's work to verify them

And in bytes, for each entry more or less than the values' defaults: of both flow tables, of both families'
frontends, and their statistics for each possible CPU.
*/}}
{{- define "lbxdp.memory" -}}
maps: 275
cpu: 5
process: 256
flow: 192
frontend: 592
frontendCpu: 64
{{- end }}

{{/* The same for these values. */}}
{{- define "lbxdp.memoryOfValues" -}}
{{- $memory := include "lbxdp.memory" . | fromYaml -}}
{{- $flows := sub (int .Values.flows) 262144 -}}
{{- $frontends := sub (int .Values.frontends) 65536 -}}
{{- $mebi := 1048576.0 -}}
{{- $maps := add (mul $flows $memory.flow) (mul $frontends $memory.frontend) -}}
{{- $cpu := mul $frontends $memory.frontendCpu -}}
maps: {{ add $memory.maps (ceil (divf $maps $mebi)) }}
cpu: {{ add $memory.cpu (ceil (divf $cpu $mebi)) }}
process: {{ $memory.process }}
{{- end }}

{{- define "lbxdp.resources" -}}
{{- $memory := include "lbxdp.memoryOfValues" . | fromYaml -}}
{{- if .Values.resources -}}
{{ toYaml .Values.resources }}
{{- else -}}
requests:
  cpu: 50m
  memory: {{ add $memory.maps 64 }}Mi
limits:
  memory: {{ add $memory.maps (mul $memory.cpu .Values.nodeCpus) $memory.process }}Mi
{{- end -}}
{{- end }}

{{/* The agent's settings, as environment variables. */}}
{{- define "lbxdp.settings" -}}
{{- if not .Values.apiServers -}}
{{- fail "\n\napiServers is empty: say how nodes reach the API server without any Service, for example\n  --set 'apiServers={https://192.0.2.10:6443}'\n`kubectl config view --minify -o jsonpath='{.clusters[0].cluster.server}'` says how you reach it.\n" -}}
{{- end -}}
# How nodes reach the API server without any Service; several addresses are separated by commas. Not
# the address of the Service "kubernetes": nobody serves it before the agent does.
LBXDP_API_SERVERS: {{ join "," .Values.apiServers | quote }}
LBXDP_BULK_REMOVAL_HOLD: {{ .Values.bulkRemovalHoldSeconds | quote }}
LBXDP_FLOWS: {{ .Values.flows | int | quote }}
LBXDP_FRONTENDS: {{ .Values.frontends | int | quote }}
LBXDP_LAYER2: {{ .Values.layer2.enabled | ternary "on" "off" | quote }}
LBXDP_LISTEN: {{ printf (contains ":" .Values.listen.address | ternary "[%s]:%d" "%s:%d") .Values.listen.address (int .Values.listen.port) | quote }}
LBXDP_LOG: {{ .Values.log | quote }}
LBXDP_MEMBERS_PORT: {{ .Values.members.port | quote }}
LBXDP_SNAT_PORTS: {{ .Values.snatPorts | quote }}
LBXDP_TC_MODE: {{ .Values.tcMode | quote }}
LBXDP_XDP_MODE: {{ .Values.xdpMode | quote }}
{{- with .Values.devices }}
LBXDP_DEVICES: {{ join "," . | quote }}
{{- end }}
{{- with .Values.podDevices }}
LBXDP_POD_DEVICES: {{ join "," . | quote }}
{{- end }}
{{- with .Values.serviceCidrs }}
LBXDP_SERVICE_CIDRS: {{ join "," . | quote }}
{{- end }}
{{- if .Values.adoptClassless }}
LBXDP_ADOPT_CLASSLESS: "true"
{{- end }}
{{- if .Values.members.keepDeadNodes }}
LBXDP_KEEP_DEAD_NODES: "true"
{{- end }}
{{- with .Values.poolNamespaces }}
LBXDP_POOL_NAMESPACES: {{ join "," . | quote }}
{{- end }}
{{- with .Values.nodePortAddresses }}
LBXDP_NODEPORT_ADDRESSES: {{ join "," . | quote }}
{{- end }}
{{- with .Values.allowExternalIPs }}
LBXDP_ALLOW_EXTERNAL_IPS: {{ join "," . | quote }}
{{- end }}
{{- if .Values.sourceRangesAllFrontends }}
LBXDP_SOURCE_RANGES_ALL_FRONTENDS: "true"
{{- end }}
{{- if .Values.handOver }}
LBXDP_HAND_OVER: "true"
{{- end }}
{{- end }}
