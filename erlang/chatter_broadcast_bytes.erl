%% SPDX-License-Identifier: Apache-2.0
%% @doc Broadcasts as bytes; docs/wire-format.md, "Broadcasts". Pure.
-module(chatter_broadcast_bytes).

-export([encode/2, decode/3, first/1, ip/1]).

-define(MAX_NETIDS, 4096).

%% @doc The bytes of a message: table of NetIDs, then what the handler makes of it.
-spec encode(tuple(), chatter_broadcast:handler() | none) -> binary().
encode(Msg, #{encode_with := Encode} = Handler) ->
    Ids = lists:usort((maps:get(extract_netids, Handler, fun(_) -> [] end))(Msg)),
    Map = maps:from_list(lists:zip(Ids, lists:seq(0, length(Ids) - 1))),
    Table = << <<(net_id_bytes(Id))/binary>> || Id <- Ids >>,
    <<(varint(length(Ids)))/binary, Table/binary, (Encode(Msg, Map))/binary>>;
encode(Msg, _) ->
    <<0, (term_to_binary(Msg))/binary>>.

%% @doc The message again. Fails if the bytes are none of that type.
-spec decode(binary(), binary(), chatter_broadcast:handler() | none) -> tuple().
decode(Type, Bytes, Handler) ->
    {N, Rest} = varint_of(Bytes),
    true = N =< ?MAX_NETIDS,
    {Map, Body} = net_ids_of(N, 0, Rest, #{}),
    Msg = case Handler of
              #{decode_with := Decode} -> element(1, Decode(Body, Map));
              _ -> binary_to_term(Body, [safe])
          end,
    Type = atom_to_binary(element(1, Msg)),
    Msg.

%% @doc The first message of a run, as it stands in packets, and what is behind it.
-spec first(binary()) -> {binary(), binary()}.
first(<<_Flags, Len, _:Len/binary, Size:24, Body:Size/binary, Rest/binary>>) ->
    {Body, Rest}.

%% @doc An address out of its 4 or 16 bytes.
-spec ip(binary()) -> inet:ip_address().
ip(<<A, B, C, D>>) -> {A, B, C, D};
ip(<<A:16, B:16, C:16, D:16, E:16, F:16, G:16, H:16>>) -> {A, B, C, D, E, F, G, H}.

net_id_bytes({net_id, {A, B, C, D}, Port}) -> <<4, A, B, C, D, Port:16>>;
net_id_bytes({net_id, Ip, Port}) ->
    <<6, << <<Word:16>> || Word <- tuple_to_list(Ip) >>/binary, Port:16>>.

net_ids_of(N, N, Rest, Map) -> {Map, Rest};
net_ids_of(N, I, <<4, Ip:4/binary, Port:16, Rest/binary>>, Map) ->
    net_ids_of(N, I + 1, Rest, Map#{I => {net_id, ip(Ip), Port}});
net_ids_of(N, I, <<6, Ip:16/binary, Port:16, Rest/binary>>, Map) ->
    net_ids_of(N, I + 1, Rest, Map#{I => {net_id, ip(Ip), Port}}).

varint(N) when N < 128 -> <<N>>;
varint(N) -> <<1:1, N:7, (varint(N bsr 7))/binary>>.

varint_of(<<0:1, N:7, Rest/binary>>) -> {N, Rest};
varint_of(<<1:1, Low:7, 0:1, High:7, Rest/binary>>) -> {High bsl 7 bor Low, Rest}.
