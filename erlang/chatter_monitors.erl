%% SPDX-License-Identifier: Apache-2.0
%% @doc Who is told which nodes the network can reach, and which it can: the table behind
%% `chatter:monitor_nodes/1'. No process.
%%
%% The table belongs to `chatter_dist_sup' and is changed by `chatter_node' alone, so that a crash
%% of that process ends no subscription: its successor tells what has changed meanwhile.
-module(chatter_monitors).

-export([new/0, subscribe/1, unsubscribe/1, subscribers/0, node_up/1, node_down/1, all_down/0,
         now_up/1]).

%% Rows: {{subscriber, Pid}}, {{up, Name}}.
-define(TABLE, ?MODULE).

%% @doc Makes the table, which is the caller's.
-spec new() -> ok.
new() ->
    ?TABLE = ets:new(?TABLE, [named_table, public, ordered_set]),
    ok.

%% @doc From now on the process gets `{chatter, node_up | node_down, Node}'. Whether it is new.
-spec subscribe(pid()) -> boolean().
subscribe(Pid) ->
    ets:insert_new(?TABLE, {{subscriber, Pid}}).

%% @doc The process gets no more.
-spec unsubscribe(pid()) -> ok.
unsubscribe(Pid) ->
    true = ets:delete(?TABLE, {subscriber, Pid}),
    ok.

%% @doc The processes that are told.
-spec subscribers() -> [pid()].
subscribers() ->
    [Pid || [Pid] <- ets:match(?TABLE, {{subscriber, '$1'}})].

%% @doc A node of that name can be reached. Nodes that have no name yet are not told of.
-spec node_up(binary()) -> ok.
node_up(<<>>) -> ok;
node_up(Name) ->
    case ets:insert_new(?TABLE, {{up, Name}}) of
        true -> tell(node_up, Name);
        false -> ok
    end.

%% @doc This life of the node is over.
-spec node_down(binary()) -> ok.
node_down(Name) ->
    case ets:take(?TABLE, {up, Name}) of
        [] -> ok;
        [_] -> tell(node_down, Name)
    end.

%% @doc This node has left the network.
-spec all_down() -> ok.
all_down() ->
    now_up([]).

%% @doc These and no others can be reached.
-spec now_up([binary()]) -> ok.
now_up(Names) ->
    Known = lists:append(ets:match(?TABLE, {{up, '$1'}})),
    lists:foreach(fun node_down/1, Known -- Names),
    lists:foreach(fun node_up/1, Names -- Known).

tell(Event, Name) ->
    case subscribers() of
        [] -> ok;
        Pids ->
            Node = binary_to_atom(Name),
            lists:foreach(fun(Pid) -> Pid ! {chatter, Event, Node} end, Pids)
    end.
