%% SPDX-License-Identifier: Apache-2.0
%% @doc Has new connections wait until `global' has taken in that old ones are over.
%%
%% `global' tells all nodes that it is connected to of every connection that it loses, and they
%% cut off the node that it names (prevent_overlapping_partitions). A node that was stopped or cut
%% off for too long loses all its connections at once; but `global' hears of one after the other,
%% and sends by the name of the node. If some have been made anew by then, it would tell these nodes
%% to cut off the rest, which are well. With sockets it is the same; there, too, it takes a host so
%% busy that a message to `global' waits longer than a connection takes.
%%
%% The nodes whose connections have ended are noted by `chatter_node', which hears of them before
%% it hears of a route over which a new connection could come.
-module(chatter_settle).

-export([note/2, recent/1, await/2]).

-export_type([ended/0]).

%% Which nodes are gone, the controllers of their connections if these had not died yet, and when.
-opaque ended() :: #{node() => {pid() | none, Ms :: integer()}}.

%% Older ones are not waited for.
-define(RECENT_MS, 5000).

%% So many are noted; then all are forgotten, as they are only a help.
-define(MAX_NOTED, 4096).

%% How often `global' is asked.
-define(POLL_MS, 10).

%% @doc A node is gone: all connections to it are over or end now.
-spec note(binary(), ended()) -> ended().
note(Name, Ended) ->
    try binary_to_existing_atom(Name) of
        Node ->
            Kept = if map_size(Ended) < ?MAX_NOTED -> Ended; true -> #{} end,
            Kept#{Node => {controller(Node), now_ms()}}
    catch
        %% Nobody has ever had a connection to it.
        error:badarg -> Ended
    end.

controller(Node) ->
    case lists:keyfind(Node, 1, erlang:system_info(dist_ctrl)) of
        {_, Ctrl} when is_pid(Ctrl) -> Ctrl;
        _ -> none
    end.

%% @doc Those that may have to be waited for.
-spec recent(ended()) -> ended().
recent(Ended) ->
    Since = now_ms() - ?RECENT_MS,
    maps:filter(fun(_, {_, At}) -> At > Since end, Ended).

%% @doc Returns when `global' knows these nodes no more, or only by newer connections, or after so
%% many ms. A node that `global' was only about to get to know is not waited for.
-spec await(ended(), non_neg_integer()) -> ok.
await(Ended, LimitMs) ->
    Until = now_ms() + LimitMs,
    maps:foreach(fun(_, {Ctrl, _}) -> await_dead(Ctrl, Until) end, Ended),
    await_global(maps:keys(Ended), Until).

await_dead(none, _) -> ok;
await_dead(Ctrl, Until) ->
    Ref = monitor(process, Ctrl),
    receive {'DOWN', Ref, process, _, _} -> ok
    after max(0, Until - now_ms()) -> demonitor(Ref, [flush]), ok
    end.

await_global([], _) -> ok;
await_global(Nodes, Until) ->
    Known = known(max(0, Until - now_ms())),
    Connected = nodes(connected),
    case [Node || Node <- Nodes, lists:member(Node, Known), not lists:member(Node, Connected)] of
        [_ | _] = Left ->
            case now_ms() < Until of
                true -> receive after ?POLL_MS -> await_global(Left, Until) end;
                false -> ok
            end;
        [] -> ok
    end.

%% The nodes that `global' takes for connected; when it does not answer, or not as it should, none.
known(TimeoutMs) ->
    try gen_server:call(global_name_server, get_known, TimeoutMs) of
        Nodes when is_list(Nodes) -> Nodes;
        _ -> []
    catch
        exit:_ -> []
    end.

now_ms() -> erlang:monotonic_time(millisecond).
