%% SPDX-License-Identifier: Apache-2.0
%% @doc Carries the messages of groups as broadcasts of type `chatter_group', in their own portable
%% bytes. No process.
-module(chatter_group_bus).
-behaviour(chatter_group_transport).

-export([attach/0, send/2, incoming/1, net_id/0]).

-define(TYPE, chatter_group).

%% So many messages may wait for the server; further ones are lost, which the next comparison heals.
-define(CREDIT, 1000).

%% How long the control plane may take to answer. It takes microseconds.
-define(ANSWER_MS, 5000).

%% @doc From now on the calling process gets what others broadcast.
-spec attach() -> ok | {error, term()}.
attach() ->
    Encode = fun({?TYPE, Bytes}, _) -> Bytes end,
    Decode = fun(Bytes, _) -> {{?TYPE, Bytes}, <<>>} end,
    case chatter:add_handler(#{type => ?TYPE, encode_with => Encode, decode_with => Decode}) of
        ok -> chatter:subscribe(?TYPE, ?CREDIT);
        {error, _} = Error -> Error
    end.

%% @doc One broadcast to these nodes. Does not wait for room: what finds none is lost.
-spec send([chatter_group_transport:target(), ...], binary()) -> ok.
send(Targets, Bytes) ->
    _ = chatter:broadcast(Targets, {?TYPE, Bytes}, #{timeout => 0}),
    ok.

%% @doc The bytes in a message to the process that attached. It is asked for more before it has run
%% out of credit only by the last one, so a burst may cost some.
-spec incoming(term()) -> {ok, binary()} | none.
incoming({chatter_broadcast, _, {?TYPE, Bytes}}) when is_binary(Bytes) -> {ok, Bytes};
incoming({chatter_broadcast_passive, ?TYPE}) ->
    ok = chatter:subscribe(?TYPE, ?CREDIT),
    none;
incoming(_) -> none.

%% @doc The first address at which this node takes links, one of IPv4 and not of this host alone
%% if there is such; `none' if it takes none, or while that is not known.
-spec net_id() -> chatter_group_wire:net_id().
net_id() ->
    case lists:sort([{rank(Ip), N, NetId}
                     || {N, {net_id, Ip, _} = NetId} <- lists:enumerate(own_addresses())]) of
        [{_, _, First} | _] -> First;
        [] -> none
    end.

%% What this node tells others of itself.
own_addresses() ->
    Ref = make_ref(),
    Nodes = case chatter_nif:addresses(Ref) of
                true -> receive {Ref, Answer} -> Answer after ?ANSWER_MS -> [] end;
                false -> []
            end,
    Name = atom_to_binary(node()),
    [{net_id, chatter_broadcast_bytes:ip(Ip), Port}
     || {Node, At} <- Nodes, Node =:= Name, {Ip, Port} <- At].

rank({127, _, _, _}) -> 2;
rank({_, _, _, _}) -> 1;
rank({0, 0, 0, 0, 0, 0, 0, 1}) -> 4;
rank(_) -> 3.
