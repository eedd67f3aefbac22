%% SPDX-License-Identifier: Apache-2.0
%% @doc The network as this node sees it. Works as soon as distribution runs; no application needs
%% to be started. From Elixir: `:chatter.nodes()' and so on.
-module(chatter).

-export([nodes/0, neighbours/0, route/1, links/0, info/0, info/1, connect/1, disconnect/1,
         topology/0]).

-export_type([neighbour/0]).

-type neighbour() :: node() | {node(), pos_integer()}
                   | {inet:hostname() | inet:ip_address(), inet:port_number()}.
%% A node by name, with a metric, or by address: as in the configuration key `neighbours'.

%% How long the control plane may take to answer. It takes microseconds.
-define(ANSWER_MS, 5000).

%% @doc Every node that the network can reach now, connected or not; this one is not among them.
-spec nodes() -> [node()].
nodes() ->
    [binary_to_atom(Name) || Name <- chatter_nif:nodes()].

%% @doc The nodes with an established link to this one.
-spec neighbours() -> [node()].
neighbours() ->
    lists:usort([binary_to_atom(Name) || Name <- chatter_nif:neighbours()]).

%% @doc The hops from here to a node, that node last. `[node()]' for this node itself.
-spec route(node()) -> {ok, [node()]} | {error, unreachable}.
route(Node) when Node =:= node() ->
    {ok, [Node]};
route(Node) when is_atom(Node) ->
    case chatter_nif:route(atom_to_binary(Node)) of
        [] -> {error, unreachable};
        Hops -> {ok, [binary_to_atom(Hop) || Hop <- Hops]}
    end.

%% @doc Live figures of every link: peer, remote address, state, RTT and metric, bytes, packets,
%% what is queued, what was dropped. docs/operations.md explains each.
-spec links() -> [map()].
links() ->
    [named(Link) || Link <- ask(fun chatter_nif:links/1, [])].

%% @doc Live figures of this node.
-spec info() -> map().
info() ->
    ask(fun chatter_nif:info/1, #{}).

%% @doc What is known of a node: whether it is reachable and how, and figures of the channels to it.
-spec info(node()) -> map().
info(Node) when is_atom(Node) ->
    Route = case route(Node) of
                {ok, Hops} -> Hops;
                {error, unreachable} -> []
            end,
    #{node => Node, reachable => Route =/= [], route => Route,
      connected => lists:member(Node, erlang:nodes(connected)),
      channels => chatter_nif:channels(atom_to_binary(Node))}.

%% @doc Adds a link at run time; it is dialled again whenever it is lost, like one of the
%% configuration.
-spec connect(neighbour()) -> ok | {error, not_started | busy | badarg}.
connect(Neighbour) ->
    with_spec(Neighbour, fun(Spec, Metric) -> chatter_nif:connect(Spec, Metric, true) end).

%% @doc Drops a link, and the wish to have it.
-spec disconnect(neighbour()) -> ok | {error, not_started | busy | badarg}.
disconnect(Neighbour) ->
    with_spec(Neighbour, fun(Spec, _) -> chatter_nif:disconnect(Spec) end).

%% @doc The whole network: nodes, and edges with the metric in the direction in which they are
%% named. A node that has no name yet is shown by its id.
-spec topology() -> #{nodes := [node() | binary()],
                      edges := [{node() | binary(), node() | binary(), pos_integer()}]}.
topology() ->
    {Nodes, Edges} = ask(fun chatter_nif:topology/1, {[], []}),
    Names = maps:from_list([{Id, shown(Id, Name)} || {Id, Name} <- Nodes]),
    #{nodes => lists:sort(maps:values(Names)),
      edges => lists:sort([{maps:get(A, Names, A), maps:get(B, Names, B), Metric}
                           || {A, B, Metric} <- Edges])}.

shown(Id, <<>>) -> Id;
shown(_Id, Name) -> binary_to_atom(Name).

named(#{peer := <<>>, peer_id := Id} = Link) -> Link#{peer := Id};
named(#{peer := Name} = Link) -> Link#{peer := binary_to_atom(Name)}.

ask(Question, Default) ->
    Ref = make_ref(),
    case Question(Ref) of
        true -> receive {Ref, Answer} -> Answer after ?ANSWER_MS -> Default end;
        false -> Default
    end.

with_spec({Node, Metric}, Do) when is_atom(Node), is_integer(Metric), Metric > 0, Metric =< 65535 ->
    case is_name(Node) of
        true -> Do({name, atom_to_binary(Node)}, Metric);
        false -> with_address(atom_to_list(Node), Metric, Do)
    end;
with_spec({Host, Port}, Do) ->
    with_address(Host, Port, Do);
with_spec(Node, Do) when is_atom(Node) ->
    case is_name(Node) of
        true -> Do({name, atom_to_binary(Node)}, 0);
        false -> {error, badarg}
    end;
with_spec(_, _) ->
    {error, badarg}.

with_address(Host, Port, Do) when is_integer(Port), Port > 0, Port < 65536 ->
    case is_tuple(Host) andalso inet:ntoa(Host) of
        false ->
            try unicode:characters_to_binary(Host) of
                Text when is_binary(Text), Text =/= <<>> -> Do({address, Text, Port}, 0);
                _ -> {error, badarg}
            catch error:badarg -> {error, badarg}
            end;
        {error, einval} -> {error, badarg};
        Text -> Do({address, list_to_binary(Text), Port}, 0)
    end;
with_address(_, _, _) ->
    {error, badarg}.

is_name(Node) ->
    lists:member($@, atom_to_list(Node)).
