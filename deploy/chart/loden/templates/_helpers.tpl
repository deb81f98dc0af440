{{- /* The image of the agent, which holds the plugins too. */ -}}
{{- define "loden.image" -}}
{{- $tag := default .Chart.AppVersion .Values.loden.image.tag -}}
{{- $image := .Values.flannel.image -}}
{{- if contains "loden" $image.repository -}}
{{ $image.repository }}:{{ default $tag $image.tag }}
{{- else -}}
{{ .Values.loden.image.repository }}:{{ $tag }}
{{- end -}}
{{- end -}}

{{- define "loden.cniImage" -}}
{{- $image := .Values.flannel.flannel_cni.image -}}
{{- if contains "loden" $image.repository -}}
{{ $image.repository }}:{{ default .Chart.AppVersion $image.tag }}
{{- else -}}
{{ include "loden.image" . }}
{{- end -}}
{{- end -}}

{{- /* Built as a value and printed as JSON, so that it is JSON whatever the values are. */ -}}
{{- define "loden.netConf" -}}
{{- $v := .Values.flannel -}}
{{- $b := dict "Type" $v.backend -}}
{{- if eq $v.backend "vxlan" -}}
{{- if $v.backendPort -}}{{- $_ := set $b "Port" (int $v.backendPort) -}}{{- end -}}
{{- if $v.vni -}}{{- $_ := set $b "VNI" (int $v.vni) -}}{{- end -}}
{{- if $v.GBP -}}{{- $_ := set $b "GBP" (eq (toString $v.GBP) "true") -}}{{- end -}}
{{- if $v.directRouting -}}{{- $_ := set $b "DirectRouting" (eq (toString $v.directRouting) "true") -}}{{- end -}}
{{- if $v.mtu -}}{{- $_ := set $b "MTU" (int $v.mtu) -}}{{- end -}}
{{- if $v.macPrefix -}}{{- $_ := set $b "MacPrefix" (toString $v.macPrefix) -}}{{- end -}}
{{- else if eq $v.backend "wireguard" -}}
{{- if $v.backendPort -}}{{- $_ := set $b "ListenPort" (int $v.backendPort) -}}{{- end -}}
{{- if $v.backendPortv6 -}}{{- $_ := set $b "ListenPortV6" (int $v.backendPortv6) -}}{{- end -}}
{{- if $v.psk -}}{{- $_ := set $b "PSK" (toString $v.psk) -}}{{- end -}}
{{- if $v.mtu -}}{{- $_ := set $b "MTU" (int $v.mtu) -}}{{- end -}}
{{- /* flannel's chart forgets the quotes: values files that bring their own must go on working. */ -}}
{{- if $v.tunnelMode -}}{{- $_ := set $b "Mode" (trimAll "\"" (toString $v.tunnelMode)) -}}{{- end -}}
{{- if $v.keepaliveInterval -}}{{- $_ := set $b "PersistentKeepaliveInterval" (int $v.keepaliveInterval) -}}{{- end -}}
{{- else if eq $v.backend "udp" -}}
{{- if $v.backendPort -}}{{- $_ := set $b "Port" (int $v.backendPort) -}}{{- end -}}
{{- end -}}
{{- $conf := dict "Backend" $b -}}
{{- if .Values.podCidr -}}
{{- $_ := set $conf "Network" (toString .Values.podCidr) -}}
{{- else -}}
{{- $_ := set $conf "EnableIPv4" false -}}
{{- end -}}
{{- if .Values.podCidrv6 -}}
{{- $_ := set $conf "EnableIPv6" true -}}
{{- $_ := set $conf "IPv6Network" (toString .Values.podCidrv6) -}}
{{- end -}}
{{- if $v.enableNFTables -}}{{- $_ := set $conf "EnableNFTables" true -}}{{- end -}}
{{- toPrettyJson $conf -}}
{{- end -}}
