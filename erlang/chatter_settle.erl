%% SPDX-License-Identifier: Apache-2.0
%% @doc Keeps `global' from telling others of nodes that are gone, as they see that by themselves.
%%
%% `global' tells all nodes that it is connected to of every connection that it loses, and they cut
%% off the node that it names (prevent_overlapping_partitions). It names nodes by their names: what
%% arrives late, and under load that is seconds, ends connections that have begun meanwhile, with
%% the next life of the node that is named or with the same one that was away. With sockets it is
%% the same race. But sockets end one by one, and there the others have to be told; over Chatter a
%% node has a route from all of its part of the network or from none, and its life is over for all.
%%
%% So for a connection that ended because the other node was given up or its life is over, `global'
%% is sent, before the VM ends the connection, what the `global' of that node would send to have it
%% removed without telling anybody ("remove_connection"). Connections that end by themselves (a
%% disconnect, packets lost for good) are told of, as over any carrier.
%%
%% What `global' does then it does by name too: so no connection begins before it has.
%%
%% `global' logs each of these as a warning that it disconnected a node to prevent overlapping
%% partitions. Nothing of that kind has happened, and over stock distribution a node that stops
%% makes no warning: so a filter of `logger' drops it, for nodes that were reported here alone.
%%
%% It also has all cut off a node that it has heard of from others and cannot connect to at once.
%% But such a node is there, and the route to it on its way: is_expected/1 tells who is to wait. An
%% attempt that has just failed when `global' hears of the node counts as its own: so it is to try
%% again.
-module(chatter_settle).

-export([new/0, prepare/0, node_gone/1, await/1, is_expected/1]).
-export([unfounded/2]).

%% The nodes that `global' was sent the end of, until it has logged that or they connect again.
-define(GONE, chatter_settle_gone).

-define(FILTER, ?MODULE).

%% Connections begin after so long, whatever is not settled.
-define(LIMIT_MS, 2000).
-define(RETRY_MS, 10).

%% How often `global' tries again to connect to a node that it has heard of from others.
-define(RETRIES, 2).

%% @doc Makes the table of those that are gone, which is the caller's.
-spec new() -> ok.
new() ->
    ?GONE = ets:new(?GONE, [named_table, public]),
    ok.

%% @doc Has `global' try again to connect (`global_connect_retries' of kernel), unless that is set.
-spec prepare() -> ok.
prepare() ->
    case application:get_env(kernel, global_connect_retries) of
        {ok, _} -> ok;
        undefined -> application:set_env(kernel, global_connect_retries, ?RETRIES)
    end.

%% @doc The connection to the node is about to end, because that is gone. To be called by one of the
%% processes with which the connection ends.
-spec node_gone(node()) -> ok.
node_gone(Node) ->
    _ = case is_needed() andalso whereis(global_name_server) of
            Pid when is_pid(Pid) ->
                _ = is_filtering() andalso with_gone(fun() -> ets:insert(?GONE, {Node}) end),
                Pid ! {remove_connection, Node};
            _ -> ok
        end,
    ok.

%% Sees to it that the filter is there: `logger' is not yet when distribution starts.
is_filtering() ->
    #{filters := Filters} = logger:get_primary_config(),
    lists:keymember(?FILTER, 1, Filters)
        orelse try logger:add_primary_filter(?FILTER, {fun ?MODULE:unfounded/2, []}) of
                   ok -> true;
                   {error, {already_exist, _}} -> true;
                   {error, _} -> false
               catch exit:_ -> false
               end.

%% While distribution stops the table may be gone before the last of those who use it.
with_gone(Fun) ->
    try Fun()
    catch error:badarg -> false
    end.

%% @private
%% A filter of `logger', which runs in the process that logs.
-spec unfounded(logger:log_event(), []) -> stop | ignore.
unfounded(#{level := warning, msg := {"'global' at node " ++ _, [This, Node | Rest]}}, _)
  when This =:= node() ->
    %% From OTP 26 on what happened stands between the two nodes.
    case with_gone(fun() -> [] =/= lists:append([ets:take(?GONE, N) || N <- [Node | Rest]]) end) of
        true -> stop;
        false -> ignore
    end;
unfounded(_, _) -> ignore.

%% @doc Returns when the end of a former connection with the node has been taken in: by the VM, by
%% `global', and by net_kernel, which `global' asks to disconnect. At most two seconds for each.
-spec await(node() | binary()) -> ok.
await(Node) when is_atom(Node) ->
    ok = await_end(Node, erlang:monotonic_time(millisecond) + ?LIMIT_MS),
    _ = is_needed() andalso [call(Server, Request) || {Server, Request} <-
                                 [{global_name_server, get_known}, {net_kernel, longnames}]],
    _ = with_gone(fun() -> ets:delete(?GONE, Node) end),
    ok;
await(Name) ->
    %% A name that is no atom is of no node that there was a connection to.
    try binary_to_existing_atom(Name) of
        Node -> await(Node)
    catch
        error:badarg -> ok
    end.

%% @doc Whether `global' knows the node, though there is no connection to it: from another node,
%% that has one.
-spec is_expected(node()) -> boolean().
is_expected(Node) ->
    case is_needed() andalso call(global_name_server, get_known) of
        [_ | _] = Known -> lists:member(Node, Known) orelse lists:keymember(Node, 1, Known);
        _ -> false
    end.

%% If it does not end, this is a second connection, for net_kernel to turn down.
await_end(Node, Until) ->
    case lists:member(Node, nodes(connected)) andalso erlang:monotonic_time(millisecond) < Until of
        true -> receive after ?RETRY_MS -> await_end(Node, Until) end;
        false -> ok
    end.

call(Server, Request) ->
    try gen_server:call(Server, Request, ?LIMIT_MS)
    catch exit:_ -> none
    end.

%% Without these two settings `global' tells nobody.
is_needed() ->
    connects_all() andalso
        application:get_env(kernel, prevent_overlapping_partitions) =/= {ok, false}.

connects_all() ->
    case application:get_env(kernel, connect_all) of
        {ok, Value} -> Value =/= false;
        undefined -> init:get_argument(connect_all) =/= {ok, [["false"]]}
    end.
