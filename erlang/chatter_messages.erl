%% SPDX-License-Identifier: Apache-2.0
%% @doc The channels for messages of processes that need no distribution connection.
%%
%% <pre>
%%   sender, any process ── chatter_send ──► channel ··· network ··· channel ──► chatter_message_in
%%                  (table) │                   ▲                                       │ decodes
%%   chatter_messages ──────┴─ chatter_message_out: opens it,                    To ! Message
%%                             wakes senders, closes it when unused
%% </pre>
%%
%% A channel carries messages from the node that opened it to the other one: two nodes that write
%% to each other have two. So its opener alone ends it when it is not used, and nothing can be
%% under way then. Senders use it directly, by the table that this process owns; all that a message
%% costs here is a look-up.
%%
%% This process opens channels when they are first asked for, takes those that others open, and
%% has each served by a process of its own, linked to it.
-module(chatter_messages).
-behaviour(gen_server).

-export([start_link/0, channel/1, open/3, info/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

%% Spawned.
-export([anchor/0]).

-export_type([out/0]).

-type out() :: {chatter_nif:channel(), Out :: pid(), Anchor :: pid()}.
%% A channel to a node, the process that serves it, and one that who waits for an answer of that
%% node may monitor: it exits with `unused' when the channel is closed because nobody needs it, with
%% another reason when an answer may have been lost.

-type peer_name() :: binary() | pos_integer().
%% Of a node without a name, the index of its channel.

-record(out, {
    pid :: pid(),
    anchor :: pid(),
    %% Who waits for the channel, until it is open.
    opening = [] :: [gen_server:from()] | open
}).

-record(state, {
    outs = #{} :: #{node() => #out{}},
    %% The newest process for the channels that a node opens.
    ins = #{} :: #{peer_name() => pid()},
    %% What the linked processes are.
    served = #{} :: #{pid() => {out, node()} | {in, peer_name()}}
}).

%% Rows: {Node, Channel, Out, Anchor}.
-define(TABLE, ?MODULE).

%% @doc Starts the process.
-spec start_link() -> {ok, pid()} | {error, term()} | ignore.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc The open channel to a node, if there is one.
-spec channel(node()) -> {ok, out()} | none.
channel(Node) ->
    try ets:lookup(?TABLE, Node) of
        [{_, Channel, Out, Anchor}] -> {ok, {Channel, Out, Anchor}};
        [] -> none
    catch
        %% Distribution does not run.
        error:badarg -> none
    end.

%% @doc Opens a channel to a node, if there is none but the one of `Stale', which is over. `full':
%% `max_message_channels' is reached.
-spec open(node(), Stale :: pid() | none, timeout()) ->
          {ok, out()} | {error, unreachable | full}.
open(Node, Stale, Timeout) ->
    try
        gen_server:call(?MODULE, {open, Node, Stale}, Timeout)
    catch
        exit:_ -> {error, unreachable}
    end.

%% @doc Figures: channels, and what `chatter_message_stats' counts.
-spec info() -> map().
info() ->
    Channels = try gen_server:call(?MODULE, info) catch exit:_ -> #{} end,
    maps:merge(Channels, chatter_message_stats:info()).

%% ===== gen_server =====

%% @private
-spec init([]) -> {ok, #state{}}.
init([]) ->
    process_flag(trap_exit, true),
    ?TABLE = ets:new(?TABLE, [named_table, {read_concurrency, true}]),
    ok = chatter_message_stats:new(),
    ok = chatter_nif:set_message_acceptor(),
    {ok, #state{}}.

%% @private
-spec handle_call(term(), gen_server:from(), #state{}) ->
          {reply, term(), #state{}} | {noreply, #state{}}.
handle_call({open, Node, Stale}, From, #state{outs = Outs} = State) ->
    case Outs of
        #{Node := #out{pid = Stale}} ->
            open_out(Node, From, forget_out(Node, State));
        #{Node := #out{opening = open}} ->
            {reply, channel(Node), State};
        #{Node := #out{opening = Froms} = Out} ->
            {noreply, State#state{outs = Outs#{Node := Out#out{opening = [From | Froms]}}}};
        #{} ->
            open_out(Node, From, State)
    end;
handle_call(info, _From, #state{outs = Outs, ins = Ins} = State) ->
    {reply, #{channels_out => map_size(Outs), channels_in => map_size(Ins)}, State};
handle_call(_, _From, State) ->
    {noreply, State}.

%% @private
-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast(_, State) ->
    {noreply, State}.

%% @private
-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info({opened, Pid, Channel}, #state{outs = Outs, served = Served} = State) ->
    case Served of
        #{Pid := {out, Node}} ->
            #{Node := #out{anchor = Anchor, opening = Froms} = Out} = Outs,
            true = ets:insert(?TABLE, {Node, Channel, Pid, Anchor}),
            lists:foreach(fun(From) -> gen_server:reply(From, {ok, {Channel, Pid, Anchor}}) end,
                          Froms),
            {noreply, State#state{outs = Outs#{Node := Out#out{opening = open}}}};
        #{} ->
            {noreply, State}
    end;
handle_info({chatter_accept, Channel, Index, PeerName}, #state{ins = Ins} = State) ->
    %% Nodes without a name have nothing in common.
    Name = case PeerName of <<>> -> Index; _ -> PeerName end,
    %% What came over a channel before goes to its receivers first.
    Pid = chatter_message_in:start_link(Channel, maps:get(Name, Ins, none)),
    Served = (State#state.served)#{Pid => {in, Name}},
    {noreply, State#state{ins = Ins#{Name => Pid}, served = Served}};
handle_info({'EXIT', Pid, Reason}, #state{served = Served} = State) ->
    case maps:take(Pid, Served) of
        {{out, Node}, Rest} ->
            {noreply, out_ended(Node, Reason, State#state{served = Rest})};
        {{in, Name}, Rest} ->
            {noreply, in_ended(Name, Pid, Reason, State#state{served = Rest})};
        error ->
            {noreply, State}
    end;
handle_info(_, State) ->
    {noreply, State}.

%% ===== channels to others =====

open_out(Node, From, #state{outs = Outs, served = Served} = State) ->
    case map_size(Outs) < chatter_node:setting(max_message_channels, 0) of
        true ->
            Pid = chatter_message_out:start_link(Node),
            Out = #out{pid = Pid, anchor = new_anchor(), opening = [From]},
            {noreply, State#state{outs = Outs#{Node => Out}, served = Served#{Pid => {out, Node}}}};
        false ->
            {reply, {error, full}, State}
    end.

%% Its process may not know yet that the channel is over.
forget_out(Node, #state{outs = Outs, served = Served} = State) ->
    #{Node := #out{pid = Pid}} = Outs,
    true = unlink(Pid),
    true = exit(Pid, kill),
    out_ended(Node, stale, State#state{served = maps:remove(Pid, Served)}).

out_ended(Node, Reason, #state{outs = Outs} = State) ->
    {#out{anchor = Anchor, opening = Opening}, Rest} = maps:take(Node, Outs),
    true = ets:delete(?TABLE, Node),
    end_anchor(Anchor, Reason),
    [gen_server:reply(From, {error, unreachable}) || Opening =/= open, From <- Opening],
    State#state{outs = Rest}.

%% ===== channels of others =====

%% Answers to calls may have been lost with it, unless its opener needed it no more.
in_ended(Name, Pid, Reason, #state{ins = Ins} = State) ->
    State1 = case Ins of
                 #{Name := Pid} -> State#state{ins = maps:remove(Name, Ins)};
                 #{} -> State
             end,
    case Reason of
        {shutdown, unused} -> State1;
        _ -> renew_anchor(Name, State1)
    end.

renew_anchor(Index, State) when is_integer(Index) -> State;
renew_anchor(Name, #state{outs = Outs} = State) ->
    Node = try binary_to_existing_atom(Name) catch error:badarg -> undefined end,
    case Outs of
        #{Node := #out{anchor = Anchor, opening = Opening} = Out} ->
            New = new_anchor(),
            _ = Opening =:= open andalso ets:update_element(?TABLE, Node, {4, New}),
            end_anchor(Anchor, noconnection),
            State#state{outs = Outs#{Node := Out#out{anchor = New}}};
        #{} ->
            State
    end.

new_anchor() ->
    spawn_opt(?MODULE, anchor, [], [link, {min_heap_size, 12}]).

end_anchor(Anchor, Reason) ->
    true = unlink(Anchor),
    exit(Anchor, case Reason of {shutdown, unused} -> unused; _ -> noconnection end).

%% @private
-spec anchor() -> no_return().
anchor() ->
    receive after infinity -> exit(unused) end.
